"""The worked example of docs/adding-a-namespace.md, run as it stands there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.blocks import titled
from tests.e2e.harness import ROOT, Client, Stack, eventually, free_port
from tests.e2e.test_live_view import Admin

PAGE = titled("adding-a-namespace.md")
CLIENT = ROOT / "client"
ROOM = "board:7"


class Product(Stack):
    """A system whose product brings the app of the page."""

    def prepare(self) -> Product:
        app = self.directory / "ops"
        app.mkdir()
        for module in ("namespace", "policy", "events"):
            (app / f"{module}.py").write_text(PAGE[f"ops/{module}.py"])
        settings: dict[str, Any] = {}
        exec(PAGE["settings"], settings)
        self.env |= {
            "REALTIME_NAMESPACES": ",".join(settings["REALTIME"]["NAMESPACES"]),
            "PYTHONPATH": os.pathsep.join([str(self.directory), str(ROOT)]),
        }
        return self

    def python(self, *blocks: str) -> str:
        """Run code of the page in a backbone without an outbox; what it prints."""
        program = "\n".join(["import django; django.setup()", *blocks])
        done = self.run("-c", program, DJANGO_SETTINGS_MODULE="realtime.settings.sockets")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def product(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with Product(tmp_path_factory.mktemp("product"), redis_url) as product:
        product.prepare().start_all()
        yield product


@pytest.fixture(scope="module")
def token(product: Product) -> str:
    return product.python(PAGE["a token"])


@pytest.fixture
async def supervisor(product: Product, token: str) -> Any:
    """A supervisor who has joined the board, with every right of the token."""
    async with product.client("ops", token=token) as client:
        await granted(product, client)
        yield client


async def granted(product: Product, client: Client) -> dict[str, Any]:
    """Grant the board to the supervisor. Joining may be refused until the grant was read."""
    product.add("room:grant", {"namespace": "ops", "user_id": "9", "room": ROOM})

    async def answer() -> dict[str, Any] | None:
        frame = await client.ask("join", {"room": ROOM})
        return frame["data"] if frame["event"] == "ack" else None

    found: dict[str, Any] = await eventually(answer)
    return found


async def test_token_opens_the_namespace_and_the_rooms_that_it_names(product: Product, token: str):
    async with product.client("ops", token=token) as client:
        assert (client.ready["namespace"], client.ready["rooms"].keys()) == ("ops", {"user:9"})
        assert (await client.call("join", {"room": ROOM}))["room"] == ROOM
        assert (await client.refused("join", {"room": "board:8"}))["code"] == "forbidden"
        assert (await client.call("join:thread", {"thread_id": "42"}))["room"] == "thread:42"
        assert (await client.refused("typing:start", {"thread_id": "42"}))["code"] == "forbidden"
    product.assert_refused(await product.handshake("/hub/", token=token), 403, "forbidden_role")
    customer = product.sign(role="customer")
    product.assert_refused(await product.handshake("/ops/", token=customer), 403, "forbidden_role")


async def test_what_is_published_reaches_the_board_and_no_other_namespace(
    product: Product, supervisor: Client
):
    async with product.client("hub", "9") as attendant, product.client("portal", "9") as customer:
        product.python(PAGE["publish"], PAGE["publish to a room"])
        frame = await supervisor.expect("card:moved")
        assert (frame["room"], frame["data"]["column"]) == (ROOM, "doing")
        assert (await supervisor.expect("thread:message"))["room"] == ROOM
        for other in (attendant, customer):
            await other.nothing("card:moved", "thread:message")


async def test_what_was_missed_is_recovered(product: Product, token: str, supervisor: Client):
    product.python(PAGE["publish"])
    since = (await supervisor.expect("card:moved"))["offset"]
    product.python(PAGE["publish"])
    await supervisor.expect("card:moved")
    async with product.client("ops", token=token) as back:
        answer = await back.call("resume", {"rooms": {ROOM: since}})
        assert answer["rooms"][ROOM] == {"recovered": True, "offset": since, "missed": 1}
        assert int((await back.expect("card:moved"))["offset"]) > int(since)


async def test_pointing_is_seen_on_the_board(product: Product, token: str, supervisor: Client):
    async with product.client("ops", token=token) as other:
        point = {"board_id": 7, "card_id": 1}
        assert (await other.refused("card:point", point))["code"] == "not_in_room"
        await other.call("join", {"room": ROOM})
        await other.call("card:point", point)
        data = (await supervisor.expect("card:pointed"))["data"]
        assert (data["card_id"], data["user_id"], data["namespace"]) == ("1", "9", "ops")


async def test_revoked_supervisor_leaves_the_board_and_cannot_come_back(product: Product, supervisor: Client):
    the_import = PAGE["publish"].splitlines()[0]
    product.python(the_import, PAGE["revoke"])
    assert (await supervisor.expect("room:left"))["data"] == {"room": ROOM, "reason": "forbidden"}
    assert (await supervisor.refused("join", {"room": ROOM}))["code"] == "forbidden"
    answer = await supervisor.call("resume", {"rooms": {ROOM: "1"}})
    assert answer["rooms"] == {ROOM: {"error": "forbidden"}}
    await granted(product, supervisor)  # the tests run in any order


async def test_python_client_of_the_page_follows_the_board(product: Product, token: str, supervisor: Client):
    page: dict[str, Any] = {}
    exec(PAGE["a client in Python"], page)
    moved: list[tuple[str, str]] = []
    following = asyncio.create_task(
        page["follow"](product.url("ops"), token, lambda card, column: moved.append((card, column)))
    )

    added = 0

    async def has_moved() -> bool:
        nonlocal added
        product.add("card:moved", {"board_id": 7, "card_id": 1, "column": "done"})
        added += 1
        return ("1", "done") in moved

    await eventually(has_moved)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await eventually(lambda: len(supervisor.received("card:moved")) == added)  # none is left to the next test


@pytest.mark.needs_browser
def test_types_of_the_page_are_those_of_the_browser_client(product: Product):
    folder = product.directory / "page"
    folder.mkdir()
    (folder / "realtime-events.d.ts").write_text(product.manage("generateclient"))
    (folder / "page.ts").write_text(PAGE["page.ts"])
    paths = {"realtime-sockets": [str(CLIENT / "src" / "index.ts")]}
    options = {"noEmit": True, "paths": paths}
    extended = {
        "extends": str(CLIENT / "tsconfig.json"),
        "compilerOptions": options,
        "include": ["page.ts", "realtime-events.d.ts"],
    }
    (folder / "tsconfig.json").write_text(json.dumps(extended))
    done = subprocess.run(
        [CLIENT / "node_modules" / ".bin" / "tsc", "--project", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_namespace_is_described_like_the_others(product: Product):
    document = json.loads(product.manage("generateasyncapi"))
    channel = document["channels"]["ops"]
    assert (channel["address"], channel["description"]) == ("/ops/", "For the roles supervisor.")
    assert {"client.join", "client.card.point", "server.card.moved", "server.thread.message"} <= channel[
        "messages"
    ].keys()
    assert not {"client.typing.start", "server.queue.new"} & channel["messages"].keys()
    assert "server.card.moved" not in document["channels"]["hub"]["messages"]
    page = product.manage("documentevents")
    assert "| event | hub | ops | portal | rooms (default) | data | meaning |" in page
    assert "| `card:moved` | – | ✓ | – | `board:{board_id}` |" in page


@pytest.mark.slow
async def test_namespace_is_in_metrics_and_in_the_admin(product: Product, supervisor: Client):
    port = free_port()
    product.manage("migrate", "--verbosity", "0")
    product.env |= {"DJANGO_SUPERUSER_PASSWORD": "a long one"}
    product.manage("createsuperuser", "--noinput", "--username", "admin", "--email", "a@example.com")
    await asyncio.to_thread(product.start, "runweb", WEB_PORT=str(port))
    admin = await asyncio.to_thread(Admin(f"http://127.0.0.1:{port}").sign_in)
    metrics = (await product.http("GET", "/metrics")).body.decode()
    assert re.search(r'^realtime_connections{namespace="ops"} [1-9]', metrics, re.MULTILINE)
    assert supervisor.connection_id in await admin.find(namespace="ops", user="9")
    assert ROOM in await admin.get("presence/live/rooms/", namespace="ops")
    await admin.do(f"presence/live/users/ops/9/move/{ROOM}/")
    assert (await supervisor.expect("room:left"))["data"]["room"] == ROOM
    await admin.do("presence/live/users/ops/9/disconnect/")
    assert await supervisor.expect_close() == 4403
