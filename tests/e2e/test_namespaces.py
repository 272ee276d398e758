"""Namespaces that a product declares (tests/ops), served by real processes like our own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.admin import System
from tests.e2e.harness import Stack, eventually, unique
from tests.e2e.product import NAMESPACES, client

# --- Who gets in -------------------------------------------------------------------------------------


async def test_namespace_lets_in_its_roles_and_no_others(product: Stack):
    async with client(product) as supervisor, client(product, "lab") as researcher:
        assert (supervisor.ready["namespace"], supervisor.ready["role"]) == ("ops", "supervisor")
        assert set(supervisor.ready["rooms"]) == {f"user:{supervisor.user_id}", "presence:attendants"}
        assert set(researcher.ready["rooms"]) == {f"user:{researcher.user_id}"}
    for path, role, status, code in (
        ("/ops/", "attendant", 403, "forbidden_role"),
        ("/ops", "researcher", 403, "forbidden_role"),
        ("/hub/", "supervisor", 403, "forbidden_role"),
        ("/lab/", "stranger", 401, "token_invalid"),
        ("/opsy/", "supervisor", 404, "not_found"),
        ("/%6fps/", "supervisor", 404, "not_found"),
        ("/ops%2f", "supervisor", 404, "not_found"),
    ):
        token = product.sign(role=role)
        product.assert_refused(await product.handshake(path, token=token), status, code)
        bearer = [("Authorization", f"Bearer {token}"), ("Origin", "http://app.test")]
        assert (await product.http("GET", path, bearer)).status == status
    assert (await product.handshake("/ops/", token=product.sign(role="admin"))).status == 101
    verdict = await product.http("GET", "/ops/", [("Authorization", f"Bearer {product.sign(role='admin')}")])
    assert verdict.status == 204


def test_commands_follow_the_namespaces(product: Stack):
    assert product.manage("issuetoken", "--user", "7", "--role", "supervisor").count(".") == 2
    refused = product.run("manage.py", "issuetoken", "--user", "7", "--role", "stranger")
    assert "admin, attendant, customer, researcher, supervisor" in refused.stderr
    document = product.manage("generateasyncapi")
    assert '"/ops/"' in document
    assert "board.changed" in document
    assert '"board:changed": { board_id: string;' in product.manage("generateclient")


# --- Presence, metrics, admin ------------------------------------------------------------------------


async def test_namespace_with_presence_has_its_own(product: Stack):
    group = unique("g")
    async with client(product, groups=[group]) as ana, product.client("hub", groups=[group]) as hub:
        await hub.expect("attendant:online", user_id=hub.user_id)
        state = (await ana.expect("presence:state"))["data"]
        assert [member["user_id"] for member in state["members"]] == [ana.user_id]
        async with client(product, groups=[group], name="Ben") as ben:
            online = (await ana.expect("attendant:online", user_id=ben.user_id))["data"]
            assert (online["name"], online["status"]) == ("Ben", "online")
            await ben.call("presence:away")
            await ana.expect("attendant:away", user_id=ben.user_id)
        await ana.expect("attendant:offline", user_id=ben.user_id)
        async with product.client("ops", role="admin", groups=[group]) as watcher:
            assert (await watcher.refused("presence:away"))["code"] == "forbidden"
        assert {each["namespace"] for each in product.transitions(ben.user_id)} == {"ops"}
        assert not product.transitions(watcher.user_id)
        await hub.nothing("attendant:online", "attendant:away", "attendant:offline")


async def test_namespace_without_presence_keeps_none(product: Stack):
    async with client(product, "lab") as ana:
        await ana.call("heartbeat")
        assert (await ana.refused("presence:online"))["code"] == "forbidden"
        await ana.nothing("presence:state")
    async with client(product) as later:  # its transition is behind any of the other connection
        await eventually(lambda: product.transitions(later.user_id))
    assert not product.transitions(ana.user_id)


@pytest.fixture
def system(redis_url: str, tmp_path: Path) -> Iterator[System]:
    with System(tmp_path, redis_url, REALTIME_NAMESPACES=NAMESPACES) as system:
        yield system.open()


@pytest.mark.slow
async def test_operator_finds_the_namespaces_and_acts_on_their_rooms(system: System):
    admin, board = system.admin, unique("b")
    room = f"board:{board}"
    async with (
        client(system, "ops", room) as ana,
        client(system, "lab", room, port=system.other_port) as ben,
    ):
        assert await admin.find(room=room, namespace="ops") == [ana.connection_id]
        assert await admin.find(room=room, namespace="lab") == [ben.connection_id]
        page = await admin.get("presence/live/")
        assert all(f'value="{namespace}"' in page for namespace in ("hub", "portal", "ops", "lab"))
        assert re.search(rf"{room}</a></th>\s*<td>ops</td>", await admin.get("presence/live/rooms/", q=board))
        take_out = f"presence/live/users/ops/{ana.user_id}/move/{room}/"
        assert take_out in await admin.get(f"presence/live/connections/{ana.connection_id}/")
        await admin.do(take_out)
        assert (await ana.expect("room:left"))["data"] == {"room": room, "reason": "expelled"}
        await ben.nothing("room:left")
        await ana.call("join", {"room": room})
        await admin.do(f"presence/live/users/lab/{ben.user_id}/disconnect/")
        assert await ben.expect_close() == 4403
        assert ana.close_code is None
