"""The options of a client, and the ids and names that its methods take: checked where they are given."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from realtime.client import Client
from tests.client.scripted import ScriptedServer, joined, reading
from tests.e2e.harness import eventually

URL = "wss://example.com/hub/"


TIMES = ("reconnection_delay", "reconnection_delay_max", "connect_timeout", "ack_timeout")
COUNTS = (("reconnection_attempts", 0), ("queue_size", 0), ("max_unread", 1))
ODD = (True, False, "5", "", [1], 0.0j)


@pytest.mark.parametrize(
    ("option", "values", "error", "expected"),
    [
        *(
            (name, (0, -1, float("inf"), float("nan"), 86_401, 10**400), ValueError, "more than 0")
            for name in TIMES
        ),
        *((name, (None, *ODD), TypeError, "a number of seconds") for name in TIMES),
        *((name, (least - 1,), ValueError, f"at least {least}") for name, least in COUNTS),
        *((name, (5.0, *ODD), TypeError, "a whole number") for name, _ in COUNTS),
        *((name, (None, "a token"), TypeError, "a function") for name in ("get_token", "connect")),
        ("url", (None, 5, b"wss://example.com/"), TypeError, "a str"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_option_that_cannot_work_is_an_error_that_names_it(
    option: str, values: tuple[Any, ...], error: type[Exception], expected: str
):
    for value in values:
        with pytest.raises(error, match=f"^{option}: expected {expected}"):
            Client(**{"url": URL, "get_token": lambda: "x", option: value})


def test_longest_wait_is_not_below_the_first():
    with pytest.raises(ValueError, match=r"^reconnection_delay_max: expected at least reconnection_delay"):
        Client(URL, lambda: "x", reconnection_delay=2.0, reconnection_delay_max=1.0)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.com/hub/", "example.com/hub/", "/hub/", "", "wss://", "wss:///hub/"),
        *("wss://example.com:0/", "wss://example.com:99999/", "wss://example.com:port/", "wss://[::1/"),
        *("wss://example.com/hub/#x", "wss://user:secret@example.com/", "wss://example.com/a b"),
        *("wss://example..com/", f"wss://{'a' * 64}.com/"),
        *("wss://example.com/hub/\n", "wss://exämple.com/", "http://example.com/?token=secret"),
    ],
)
def test_address_that_cannot_work_is_an_error_that_does_not_quote_it(url: str):
    with pytest.raises(ValueError, match=r"^url: expected an address such as") as caught:
        Client(url, lambda: "x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ws://127.0.0.1:8001/hub/", "ws://[::1]:8001/hub/", "wss://example.com/hub/?a=1"]
)
def test_address_of_a_websocket_is_fine(url: str):
    Client(url, lambda: "x")


# --- Ids ---------------------------------------------------------------------------------------------


async def test_numbers_in_events_of_the_protocol_become_text(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await joined(server, reader)
        for event in ("typing:start", "typing:stop"):
            await reader.client.call(event, {"thread_id": 42})
        await reader.client.send("cursor:move", {"thread_id": 42, "position": 7})
        await reader.client.call("resume", {"rooms": {42: "1", "board:7": "2"}})
        await reader.client.call("leave", {"room": 42})
        await reader.client.call("ticket:watch", {"thread_id": 42})  # a product's own: it decides
        sent = [(event, visit.events(event)) for event in ("typing:start", "cursor:move", "resume", "leave")]
        assert sent == [
            ("typing:start", [{"thread_id": "42"}]),
            ("cursor:move", [{"thread_id": "42", "position": 7}]),
            ("resume", [{"rooms": {"thread:42": "1", "board:7": "2"}}]),
            ("leave", [{"room": "thread:42"}]),
        ]
        assert visit.events("ticket:watch") == [{"thread_id": 42}]


@pytest.mark.parametrize(
    "name",
    ["", " ", "4 2", "42\n", "é", "x" * 65, "thread:", "thread:4 2", ":7", "Board:7", "board:", "a\nb:7"],
)
async def test_name_that_the_server_would_refuse_is_an_error_at_once(name: str):
    client = Client(URL, lambda: "x")
    for act in (client.join, client.leave):
        with pytest.raises(ValueError, match="expected"):
            act(name)
    for event, data in (("typing:start", {"thread_id": name}), ("resume", {"rooms": {name: "1"}})):
        if ":" not in name or event == "resume":
            with pytest.raises(ValueError, match="expected"):
                await client.send(event, data)


@pytest.mark.parametrize("name", [None, True, 4.0, b"42", ["42"]], ids=repr)
async def test_what_is_no_id_is_an_error_at_once(name: Any):
    client = Client(URL, lambda: "x")
    with pytest.raises(TypeError, match="expected an id"):
        client.join(name)
    with pytest.raises(TypeError, match="expected an id"):
        await client.call("typing:start", {"thread_id": name})


async def test_room_of_a_kind_with_names_may_have_any_name(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await server.visit(1)
        reader.client.join("board:Vendas São Paulo")
        await reader.heard("room:joined")
        assert visit.events("join") == [{"room": "board:Vendas São Paulo"}]


class Thread(str, Enum):  # noqa: UP042  (a StrEnum writes itself as its value)
    FIRST = "42"
    NAMED = "board:7"


class Number(int, Enum):
    FIRST = 43


async def test_member_of_an_enum_stands_for_its_value(server: ScriptedServer):
    async with reading(server) as reader:
        visit = await server.visit(1)
        for name in (Thread.FIRST, Thread.NAMED, Number.FIRST, 2**63):
            reader.client.join(name)
        await reader.heard("room:joined", 4)
        ids = [each["thread_id"] for each in visit.events("join:thread")]
        assert (ids, visit.events("join")) == (["42", "43", str(2**63)], [{"room": "board:7"}])
        reader.client.leave("board:7")
        assert await eventually(lambda: visit.events("leave")) == [{"room": "board:7"}]


# --- Payloads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "data"),
    [
        *(("ticket:note", {"text": {1}}), ("ticket:note", {"text": b"x"}), ("ticket:note", {(1, 2): 3})),
        *(("ticket:note", {"text": float("nan")}), ("ticket:note", [1]), ("ticket:note", "text")),
        *((b"ticket:note", {}), (None, {}), ("ticket:note", 0)),
    ],
    ids=repr,
)
async def test_what_is_no_payload_fails_where_it_was_given_and_ends_no_client(
    server: ScriptedServer, event: Any, data: Any
):
    server.script.append("hang")
    async with reading(server) as reader:
        visit = await server.visit(1)
        for act in (reader.client.send, reader.client.call):
            with pytest.raises((TypeError, ValueError)):
                await act(event, data)
        visit.go.set()
        await reader.client.connected()
        await reader.client.call("heartbeat")
        assert [frame["event"] for frame in visit.sent] == ["heartbeat"]


async def test_payload_that_waits_is_sent_as_it_was_given(server: ScriptedServer):
    server.script.append("hang")
    async with reading(server) as reader:
        visit = await server.visit(1)
        note = {"text": "first", "tags": ["a"]}
        await reader.client.send("ticket:note", note)
        note["tags"].append("b")  # type: ignore[attr-defined]
        visit.go.set()
        assert await eventually(lambda: visit.events("ticket:note")) == [{"text": "first", "tags": ["a"]}]
