from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from channels.layers import get_channel_layer
from prometheus_client import REGISTRY
from redis.exceptions import ConnectionError as RedisDown

from hub.consumers import HubConsumer
from presence.connection import CustomerPresence
from realtime.auth import revocation
from realtime.auth.issuing import issue
from realtime.auth.verification import verify
from realtime.connections import deadlines
from realtime.connections.consumer import NamespaceConsumer
from realtime.connections.registry import ConnectionRegistry
from realtime.layers import history
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.envelope import iso
from realtime.protocol.publication import Draft
from realtime.protocol.rooms import group_name
from realtime.redis.client import client, key
from tests.connections.support import consumer
from tests.inprocess import Connection, bearer, connected, eventually, refusal

pytestmark = pytest.mark.usefixtures("process")
# No test here is marked django_db: pytest-django fails any that would touch the database.


def open_connections() -> float:
    return REGISTRY.get_sample_value("realtime_connections", {"namespace": "hub"}) or 0.0


# --- Opening -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("namespace", "role", "rooms"),
    [
        ("hub", "attendant", {"user:7", "presence:sales", "presence:vip"}),
        ("hub", "admin", {"user:7", "presence:sales", "presence:vip"}),
        ("portal", "customer", {"user:7"}),
    ],
)
async def test_ready_is_the_first_frame_and_says_who_and_where_the_client_is(namespace, role, rooms):
    token = issue(user_id="7", role=role, groups=["sales", "vip"])
    connection = Connection(f"/{namespace}/", headers=bearer(token))
    await connection.handshake()
    frame = json.loads((await connection.communicator.receive_output(5))["text"])
    assert frame["event"] == "connection:ready"
    data = frame["data"]
    assert set(data.pop("rooms")) == rooms
    assert len(data.pop("connection_id")) == 32
    assert data == {
        "namespace": namespace,
        "user_id": "7",
        "role": role,
        "heartbeat_interval": 30.0,
        "expires_at": iso(verify(token).expires_at),
        "limits": {"frame_bytes": 65536, "rate": 50.0, "burst": 100, "rooms": 200},
    }
    await connection.disconnect()


async def test_ready_announces_the_limits_that_are_configured(settings):
    limits = {"FRAME_BYTES": 0, "RATE": 2.5, "BURST": 7, "ROOMS": 3}
    settings.REALTIME = {**settings.REALTIME, "LIMITS": limits}
    async with connected() as ana:
        assert ana.ready["limits"] == {"frame_bytes": 0, "rate": 2.5, "burst": 7, "rooms": 3}


async def test_ready_says_where_each_room_ends():
    async with connected() as ana:
        ends = await history.ends([group_name("hub", room) for room in ana.ready["rooms"]])
        assert ana.ready["rooms"] == {room: str(ends[group_name("hub", room)]) for room in ana.ready["rooms"]}


async def test_open_connections_are_counted():
    before = open_connections()
    async with connected():
        assert open_connections() == before + 1
    await eventually(lambda: open_connections() == before)


async def test_connection_that_was_refused_is_not_counted():
    before = open_connections()
    await client().set(key("disconnected", "hub", "7"), repr(time.time() + 60))
    await refusal("/hub/", headers=bearer(issue(user_id="7", role="attendant")))
    assert open_connections() == before
    assert not ConnectionRegistry.current().connections


async def test_closed_connection_leaves_nothing_behind():
    layer: Any = get_channel_layer()
    async with connected() as ana:
        await ana.call("join:thread", {"thread_id": 42})
        groups = set(layer.groups)
    await eventually(lambda: not ConnectionRegistry.current().connections)
    assert {name for name in groups if ".thread." in name}
    assert not [name for name in layer.groups if ".user." in name or ".thread." in name]


async def test_hook_of_a_product_that_lost_a_server_does_not_end_the_connection(monkeypatch, caplog):
    monkeypatch.setattr(
        HubConsumer, "on_ready", AsyncMock(side_effect=ConnectionRefusedError("a service of the product"))
    )
    async with connected("hub") as ana:
        await ana.call("heartbeat")
    assert "a service of the product" in caplog.text


# --- Token -------------------------------------------------------------------------------------------


async def test_expiry_further_away_than_any_timer_is_watched_all_the_same(monkeypatch):
    monkeypatch.setattr(deadlines, "LONGEST", 0.05)
    async with connected(token=issue(user_id="7", role="attendant", ttl=3600)) as ana:
        await asyncio.sleep(0.3)
        await ana.call("heartbeat")
        await ana.nothing("auth:expiring")


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ({"user_id": "8", "role": "attendant"}, "forbidden"),
        ({"user_id": "7", "role": "admin"}, "forbidden"),
        ({"user_id": "7", "role": "attendant", "ttl": -1}, "invalid_payload"),
    ],
)
async def test_token_of_another_user_or_an_expired_one_does_not_refresh(token: dict[str, Any], code: str):
    async with connected() as ana:
        before = consumer().principal
        assert (await ana.refused("auth:refresh", {"token": issue(**token)}))["code"] == code
        assert consumer().principal is before


@pytest.mark.parametrize("data", [{}, {"token": ""}, {"token": 7}, {"token": "x" * 8193}, {"token": "x"}])
async def test_what_is_no_token_does_not_refresh(data: dict[str, Any]):
    async with connected() as ana:
        error = await ana.refused("auth:refresh", data)
        assert error["code"] == "invalid_payload"
        assert error["message"].startswith("token: ")


# --- Silence -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "answer"), [("hello", "error"), ('{"event": "heartbeat", "id": 1}', "ack")]
)
async def test_connection_is_closed_when_no_frame_comes_not_even_an_invalid_one(
    frame: str, answer: str, monkeypatch
):
    loop = asyncio.get_running_loop()
    clock = SimpleNamespace(ahead=0.0, time=lambda: loop.time() + clock.ahead, call_later=loop.call_later)
    monkeypatch.setattr(deadlines, "running_loop", lambda: clock)
    async with connected("portal") as ana:
        inside = consumer()
        for _ in range(3):
            clock.ahead += 200.0
            await ana.raw(frame)
            await ana.expect(answer)
            inside.deadlines.check()
        clock.ahead += 300.0
        inside.deadlines.check()
        assert await ana.expect_close() == (CloseCode.SILENT, "silent for too long")


# --- Connection limit, revocation --------------------------------------------------------------------


@pytest.mark.parametrize("missed", ["expulsion", "right"])
async def test_review_takes_a_member_out_whose_signal_was_missed(missed: str, monkeypatch):
    async def may_enter(connection: HubConsumer, room: str) -> bool:
        return False

    async def broadcast(signal: object) -> None:
        """It does not arrive."""

    async with connected() as ana:
        await ana.call("join:thread", {"thread_id": 42})
        if missed == "expulsion":
            await asyncio.sleep(0.1)
            await client().set(key("expelled", "hub", "7", "42"), repr(await revocation.now()))
        else:
            monkeypatch.setattr(HubConsumer, "may_enter", may_enter)
        await consumer().review()
        left = await ana.expect("room:left", room="thread:42")
        assert left["data"]["reason"] == ("expelled" if missed == "expulsion" else "forbidden")


async def test_review_ends_a_connection_whose_disconnect_was_missed():
    async with connected() as ana:
        await client().set(key("disconnected", "hub", "7"), repr(time.time() + 60))
        await consumer().review()
        assert await ana.expect_close() == (CloseCode.REVOKED, "revoked")


async def test_token_that_is_revoked_while_it_replaces_another_ends_the_connection(monkeypatch):
    answers = [False, True]

    async def is_revoked(principal: Any) -> bool:
        return answers.pop(0)

    async with connected() as ana:
        monkeypatch.setattr(revocation, "is_revoked", is_revoked)
        await ana.send("auth:refresh", {"token": issue(user_id="7", role="attendant")})
        assert await ana.expect_close() == (CloseCode.REVOKED, "revoked")


# --- Between the handshake and live ------------------------------------------------------------------


async def test_what_is_published_while_the_handshake_ends_follows_the_ready_frame(monkeypatch):
    async with connected("portal", "9") as first_tab:

        async def publish_meanwhile(self: NamespaceConsumer) -> None:
            head, tail = b'{"event":"user:notification","offset":"', b'","data":{"user_id":"9"}}'
            await history.append([Draft(rooms=[("portal.user.9", head)], tail=tail)])
            await first_tab.expect("user:notification")

        monkeypatch.setattr(CustomerPresence, "on_enter", publish_meanwhile)
        async with connected("portal", "9") as second_tab:
            frame = await second_tab.expect("user:notification")
            assert int(frame["offset"]) > int(second_tab.ready["rooms"]["user:9"])


async def test_mistake_in_a_hook_at_the_end_leaves_nothing_behind(monkeypatch, caplog):
    monkeypatch.setattr(HubConsumer, "on_gone", AsyncMock(side_effect=ValueError("oops")))
    layer: Any = get_channel_layer()
    async with connected("hub", "7"):
        assert group_name("hub", "user:7") in layer.groups
    assert group_name("hub", "user:7") not in layer.groups
    assert "oops" in caplog.text


async def test_room_that_a_fresh_token_does_not_allow_is_left_also_when_redis_does_not_answer(monkeypatch):
    async with connected("hub", "7", groups=["sales", "vip"]) as ana:
        await ana.call("join:thread", {"thread_id": 42})
        monkeypatch.setattr(HubConsumer, "may_enter", AsyncMock(side_effect=RedisDown))
        fresh = issue(user_id="7", role="attendant", groups=["vip"])
        assert (await ana.refused("auth:refresh", {"token": fresh}))["code"] == "unavailable"
        assert (await ana.expect("room:left"))["data"]["room"] == "presence:sales"


async def test_nothing_is_written_before_the_handshake_is_accepted(monkeypatch):
    async def expel(connection: HubConsumer) -> None:
        connection.expel("thread:42", "expelled")
        await asyncio.sleep(0.05)

    monkeypatch.setattr(HubConsumer, "initial_rooms", lambda _: ["user:7", "thread:42"])
    monkeypatch.setattr(HubConsumer, "on_enter", expel)
    async with connected("hub", "7") as ana:  # a server that is not ours would accept at the first frame
        assert set(ana.ready["rooms"]) == {"user:7"}
