from __future__ import annotations

import asyncio
import gc
import json
import time
from types import SimpleNamespace
from typing import Any, TypedDict
from unittest.mock import AsyncMock
from uuid import UUID

import pytest
from channels.layers import get_channel_layer
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from prometheus_client import REGISTRY
from redis.exceptions import ConnectionError as RedisDown
from redis.exceptions import RedisError

from hub.consumers import HubConsumer
from presence.connection import CustomerPresence
from realtime.asgi import application
from realtime.auth import revocation
from realtime.auth.issuing import issue
from realtime.auth.verification import verify
from realtime.connections import deadlines, ephemeral, rate_limit
from realtime.connections.consumer import NamespaceConsumer
from realtime.connections.registry import ConnectionRegistry
from realtime.layers import history
from realtime.layers.room_layer import RoomChannelLayer
from realtime.protocol import catalogue
from realtime.protocol.catalogue import ClientEvent
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.envelope import ErrorCode, EventError, iso
from realtime.protocol.namespaces import namespaces
from realtime.protocol.payloads import Empty, Id
from realtime.protocol.publication import Draft
from realtime.protocol.respelling import checked
from realtime.protocol.rooms import group_name
from realtime.protocol.wire_types import annotated_ack
from realtime.redis import schema_version
from realtime.redis.client import client, key
from realtime.tasks import serial
from tests import inprocess
from tests.inprocess import PATIENCE, Connection, add, bearer, bridging, connected, eventually, refusal

pytestmark = pytest.mark.usefixtures("process")
# No test here is marked django_db: pytest-django fails any that would touch the database.


def consumer() -> Any:
    """The one connection of this process, from inside."""
    (only,) = ConnectionRegistry.current().connections.values()
    return only


def open_connections() -> float:
    return REGISTRY.get_sample_value("realtime_connections", {"namespace": "hub"}) or 0.0


@pytest.fixture
def client_event(monkeypatch):
    """A client event for one test."""

    def register(handler: Any, name: str = "test:event") -> None:
        ack = annotated_ack(name, handler)
        event = ClientEvent(name, Empty, namespaces(), handler, ack, check=checked(ack))
        monkeypatch.setitem(catalogue.catalogue().client, name, event)

    return register


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


# --- Frames ------------------------------------------------------------------------------------------


async def test_invalid_payload_names_the_field():
    async with connected() as ana:
        error = await ana.refused("join:thread", {"thread_id": "a b"})
        assert error["message"].startswith("thread_id: ")


async def test_valid_frame_starts_the_count_anew(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"INVALID_FRAMES": 3}}
    async with connected() as ana:
        for _ in range(3):
            await ana.raw("hello")
            await ana.raw("hello")
            await ana.call("heartbeat")


async def test_forbidden_frames_are_not_invalid(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"INVALID_FRAMES": 2}}
    async with connected("portal") as ana:
        for _ in range(5):
            await ana.refused("presence:away")
        await ana.call("heartbeat")


async def test_limit_of_invalid_frames_can_be_switched_off(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"INVALID_FRAMES": 0, "RATE": 0}}
    async with connected() as ana:
        for _ in range(100):
            await ana.raw("hello")
        await ana.call("heartbeat")


async def test_message_that_the_server_has_not_counted_is_counted_when_it_comes(settings, monkeypatch):
    """As by daphne, which tells of messages only."""
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"RATE": 0.2, "BURST": 3}}
    async with connected() as ana:
        for _ in range(3):
            await ana.call("heartbeat")
        refused = await ana.refused("heartbeat")
        assert refused["code"] == "rate_limited"
        assert 0 < refused["retry_after"] <= 5
        await ana.raw("{")
        assert (await ana.expect("error"))["data"]["code"] == "rate_limited"
        monkeypatch.setattr(rate_limit, "PERSISTENT_SECONDS", 0)
        await ana.raw("{")
        assert await ana.expect_close() == (CloseCode.RATE_LIMITED, "rate limit exceeded")


async def test_message_that_the_server_has_counted_is_not_counted_again(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"RATE": 0.01, "BURST": 1}}
    async with connected() as ana:
        for n, early in enumerate([0.0, 0.0, 0.0004, 2.0, 0.0]):
            frame = {"type": "websocket.receive", "text": f'{{"event":"heartbeat","id":{n}}}'}
            await ana.communicator.send_input({**frame, "retry_after": early})
        acks = [(await ana.expect("ack"))["id"] for _ in range(3)]
        errors = [(await ana.expect("error")) for _ in range(2)]
        assert acks == [0, 1, 4]
        assert [error["id"] for error in errors] == [2, 3]
        assert [error["data"]["retry_after"] for error in errors] == [0.001, 2.0]


async def test_nothing_is_sent_after_the_close(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"INVALID_FRAMES": 1}}
    async with connected() as ana:
        await ana.raw("hello")
        await ana.expect_close()
        await ana.raw("hello")
        await ana.send("heartbeat", id=1)
        assert await ana.communicator.receive_nothing()


@pytest.mark.parametrize(
    "frame", ["{", '{"event":"heartbeat"}', '{"event":"nonsense"}', '{"event":"join:thread"}']
)
async def test_frame_that_is_refused_is_forgotten_with_its_error(frame):
    """A traceback keeps the frame; in a circle with a frame of Python it would stay until the collector comes by."""
    async with connected("portal") as ana:
        gc.collect()
        gc.disable()
        try:
            for retry_after in (0.0, 1.0):
                await consumer().websocket_receive({"text": frame, "retry_after": retry_after})
            left = [each for each in gc.get_objects() if issubclass(type(each), EventError)]
        finally:
            gc.enable()
        assert left == []
        assert (await ana.expect("error"))["data"]["code"]


# --- Handlers that fail ------------------------------------------------------------------------------


async def test_mistake_in_a_handler_is_internal_and_tells_nothing(client_event, caplog):
    async def handler(connection: Any, payload: Empty) -> None:
        raise ZeroDivisionError("a secret")

    client_event(handler)
    async with connected("portal") as ana:
        error = await ana.refused("test:event")
        assert error["code"] == "internal"
        assert "secret" not in error["message"]
        await ana.call("heartbeat")
    assert "event handler failed" in caplog.text


async def test_what_a_handler_answers_sends_and_emits_is_converted_as_what_is_published(client_event):
    data = {"at": UUID(int=7), "text": mark_safe("<b>"), "tags": {"x"}, "name": lazystr("Ana")}
    as_json = {"at": str(UUID(int=7)), "text": "<b>", "tags": ["x"], "name": "Ana"}

    async def handler(connection: Any, payload: Empty) -> dict[str, Any]:
        await connection.send_event("test:sent", data)
        await connection.emit("user:7", "thread:typing", thread_id=7, typing=True, **{**data, "name": "Ana"})
        return data

    client_event(handler)
    async with connected("portal") as ana, connected("portal") as other_tab:
        assert await ana.call("test:event") == as_json
        assert (await ana.expect("test:sent"))["data"] == as_json
        frame = await other_tab.expect("thread:typing")
        assert frame["data"] == {
            "user_id": "7",
            "namespace": "portal",
            "thread_id": "7",
            "typing": True,
            **as_json,
        }


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("emit", "thread:typing: typing: expected bool, got str"),
        ("send", "thread:typing: thread_id: required"),
        ("ack", "expected an object as the acknowledgement, got list"),
    ],
)
async def test_data_that_does_not_fit_its_event_is_internal_and_its_field_is_logged(
    client_event, caplog, way: str, text: str
):
    async def handler(connection: Any, payload: Empty):
        if way == "emit":
            await connection.emit("thread:7", "thread:typing", typing="yes")
        elif way == "send":
            await connection.send_event("thread:typing", {"typing": True})
        return [1]

    client_event(handler)
    async with connected("portal") as ana:
        assert (await ana.refused("test:event"))["code"] == "internal"
        await ana.call("heartbeat")
    assert text in caplog.text


class Answer(TypedDict):
    ids: list[Id]
    count: int


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"ids": [7]}, "count: required"),
        ({"ids": [7], "count": "7"}, "count: expected int, got str"),
        ({"ids": None, "count": 7}, "ids: expected array, got null"),
        ({"ids": [7, "a b"], "count": 7}, "ids[1]: expected an id"),
        (None, "ids: required"),
    ],
    ids=["missing", "wrong", "null", "no id", "nothing"],
)
async def test_acknowledgement_that_does_not_fit_its_annotation_is_internal_and_its_field_is_logged(
    client_event, caplog, answer: Any, text: str
):
    async def handler(connection: Any, payload: Empty) -> Answer:
        return answer

    client_event(handler)
    async with connected("portal") as ana:
        assert (await ana.refused("test:event"))["code"] == "internal"
        await ana.call("heartbeat")
    assert f"test:event: the acknowledgement does not fit its annotation: {text}" in caplog.text


async def test_acknowledgement_that_fits_its_annotation_is_sent_with_its_other_fields(client_event):
    async def handler(connection: Any, payload: Empty) -> Answer:
        answer: Any = {"ids": [7, "8"], "count": 7, "more": [9]}
        return answer

    client_event(handler)
    async with connected("portal") as ana:
        assert await ana.call("test:event") == {"ids": ["7", "8"], "count": 7, "more": [9]}


@pytest.mark.parametrize("value", [object(), float("nan"), b"x", len], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("way", ["ack", "send", "emit", "error"])
async def test_answer_that_json_has_no_form_for_is_internal_and_its_place_is_logged(
    client_event, caplog, value: Any, way: str
):
    async def handler(connection: Any, payload: Empty) -> dict[str, Any]:
        data = {"items": [{"owner": value}]}
        if way == "send":
            await connection.send_event("test:sent", data)
        elif way == "emit":
            await connection.emit("user:7", "thread:typing", **data)
        elif way == "error":
            raise EventError(ErrorCode.FORBIDDEN, "no", **data)
        return data

    client_event(handler)
    async with connected("portal") as ana:
        assert (await ana.refused("test:event"))["code"] == "internal"
        await ana.call("heartbeat")
    assert "items[0].owner: JSON has n" in caplog.text


async def test_hook_of_a_product_that_lost_a_server_does_not_end_the_connection(monkeypatch, caplog):
    monkeypatch.setattr(
        HubConsumer, "on_ready", AsyncMock(side_effect=ConnectionRefusedError("a service of the product"))
    )
    async with connected("hub") as ana:
        await ana.call("heartbeat")
    assert "a service of the product" in caplog.text


@pytest.mark.parametrize("failure", [RedisDown("gone"), TimeoutError(), ConnectionRefusedError()])
async def test_handler_that_lost_a_server_is_unavailable(client_event, failure: Exception):
    async def handler(connection: Any, payload: Empty) -> None:
        raise failure

    client_event(handler)
    async with connected("portal") as ana:
        assert (await ana.refused("test:event"))["code"] == "unavailable"
        await ana.call("heartbeat")


async def test_peer_that_is_gone_is_no_error(monkeypatch, caplog):
    failed = asyncio.Event()

    async def cut_off(scope: Any, receive: Any, send: Any) -> None:
        async def write(message: Any) -> None:
            if message["type"] == "websocket.send" and '"ack"' in message["text"]:
                failed.set()
                raise BrokenPipeError
            await send(message)

        await application(scope, receive, write)

    monkeypatch.setattr(inprocess, "application", cut_off)
    ana = Connection("/portal/", headers=bearer(issue(user_id="7", role="customer")))
    await ana.handshake()
    await ana.send("heartbeat", id="1")
    await asyncio.wait_for(failed.wait(), PATIENCE)
    await ana.communicator.send_input({"type": "websocket.disconnect", "code": 1006})
    await asyncio.wait_for(asyncio.shield(ana.communicator.future), PATIENCE)
    assert not ConnectionRegistry.current().connections
    assert "Traceback" not in caplog.text


async def test_mistake_in_the_handler_of_a_message_ends_nothing(monkeypatch, caplog):
    async def fail(self: Any, message: Any) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(NamespaceConsumer, "room_greeting", fail, raising=False)
    async with connected("portal") as ana:
        inside = consumer()
        await inside.dispatch({"type": "room.greeting"})
        await inside.dispatch({"type": "no.such.handler"})
        await ana.call("heartbeat")
    assert "handler failed" in caplog.text
    assert "no handler for message" in caplog.text


async def test_clean_up_that_redis_refuses_is_logged_and_completed(monkeypatch, caplog):
    monkeypatch.setattr(HubConsumer, "on_gone", AsyncMock(side_effect=RedisDown("gone")))
    async with connected():
        pass
    await eventually(lambda: "clean-up incomplete" in caplog.text)
    assert not ConnectionRegistry.current().connections


async def test_application_that_is_cancelled_cleans_up_too():
    async with connected() as ana:
        ana.communicator.future.cancel()
        await asyncio.gather(ana.communicator.future, return_exceptions=True)
        assert not ConnectionRegistry.current().connections


# --- Rooms -------------------------------------------------------------------------------------------


async def test_joining_answers_with_the_room_and_its_end():
    async with connected() as ana:
        answer = await ana.call("join:thread", {"thread_id": 42})
        ends = await history.ends(["hub.thread.42"])
        assert answer == {"room": "thread:42", "offset": str(ends["hub.thread.42"])}


async def test_joining_twice_is_fine():
    async with connected() as ana:
        assert await ana.call("join:thread", {"thread_id": 42}) == await ana.call(
            "join:thread", {"thread_id": "42"}
        )


@pytest.mark.parametrize("since", ["", "x" * 65, 7])
async def test_since_is_a_non_empty_opaque_string(since: Any):
    async with connected() as ana:
        assert (await ana.refused("join:thread", {"thread_id": 42, "since": since}))["code"] == (
            "invalid_payload"
        )


async def test_leaving_a_room_one_is_not_in_is_fine():
    async with connected() as ana:
        assert await ana.call("leave:thread", {"thread_id": 42}) == {"room": "thread:42"}


# --- Resume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_in", [False, True])
async def test_resume_does_not_answer_for_a_room_that_its_member_is_expelled_from_meanwhile(
    monkeypatch, is_in: bool
):
    missed = RoomChannelLayer.missed

    async def missed_and_expelled(*args: Any) -> Any:
        found = await missed(*args)
        consumer().expel("thread:42", "expelled")
        return found

    async with connected() as ana:
        if is_in:
            await ana.call("join:thread", {"thread_id": "42"})
        monkeypatch.setattr(RoomChannelLayer, "missed", missed_and_expelled)
        answer = await ana.call("resume", {"rooms": {"thread:42": "1"}})
        assert answer["rooms"] == {"thread:42": {"error": "forbidden"}}
        await ana.expect("room:left", room="thread:42", reason="expelled")
        error = await ana.refused("join:thread", {"thread_id": "42", "since": "1"})
        assert error["code"] == "forbidden"
        assert "thread:42" not in consumer().rooms


@pytest.mark.parametrize("again", [{}, {"since": "1"}], ids=["join", "rejoin"])
async def test_expulsion_does_not_concern_a_member_who_entered_after_it(again: dict[str, str], monkeypatch):
    claim = schema_version.claim

    async def slow() -> None:  # a handshake that takes its time must not put the clock back
        await asyncio.sleep(0.2)
        await claim()

    monkeypatch.setattr(schema_version, "claim", slow)
    async with connected() as ana:
        if again:
            await ana.call("join:thread", {"thread_id": 42})
        await asyncio.sleep(0.02)
        expelled_at = await revocation.now()
        await asyncio.sleep(0.02)
        await ana.call("join:thread", {"thread_id": 42, **again})
        consumer().expel("thread:42", "expelled", before=expelled_at)
        assert "thread:42" in consumer().rooms
        consumer().expel("thread:42", "expelled", before=expelled_at + 3600)
        assert "thread:42" not in consumer().rooms


@pytest.mark.parametrize("how", ["policy", "expulsion"])
async def test_right_that_ends_while_the_room_is_entered_refuses_the_join(how: str, monkeypatch):
    asked: list[str] = []

    async def may_enter(connection: HubConsumer, room: str) -> bool:
        asked.append(room)
        if len(asked) == 2 and how == "expulsion":
            connection.expel("thread:42", "expelled")
        return len(asked) == 1 or how == "expulsion"

    async with connected() as ana:
        monkeypatch.setattr(HubConsumer, "may_enter", may_enter)
        assert (await ana.refused("join:thread", {"thread_id": 42}))["code"] == "forbidden"
        assert "thread:42" not in consumer().rooms


async def test_resume_does_not_answer_for_a_room_lost_while_others_are_resumed(monkeypatch):
    async def may_enter(connection: HubConsumer, room: str) -> bool:
        if room == "thread:43":
            connection.expel("thread:42", "expelled")
        return True

    async with connected("hub", "7") as ana:
        offset = (await ana.call("join:thread", {"thread_id": 42}))["offset"]
        monkeypatch.setattr(HubConsumer, "may_enter", may_enter)
        answer = await ana.call("resume", {"rooms": {"thread:42": offset, "thread:43": offset}})
        assert answer["rooms"]["thread:42"] == {"error": "forbidden"}
        assert "error" not in answer["rooms"]["thread:43"]


async def test_resume_that_redis_did_not_answer_leaves_no_room_with_a_hole(monkeypatch):
    missed = RoomChannelLayer.missed

    async with bridging(), connected("hub", "8") as other, connected() as ana:
        await other.call("join:thread", {"thread_id": "42"})
        await add("thread:message", {"thread_id": 42, "message_id": 1})
        since = (await other.expect("thread:message", message_id="1"))["offset"]
        await add("thread:message", {"thread_id": 42, "message_id": 2})
        await other.expect("thread:message", message_id="2")
        monkeypatch.setattr(RoomChannelLayer, "missed", AsyncMock(side_effect=RedisDown("away")))
        refused = await ana.refused("resume", {"rooms": {"thread:42": since}})
        assert refused["code"] == "unavailable"
        await add("thread:message", {"thread_id": 42, "message_id": 3})
        await other.expect("thread:message", message_id="3")
        await ana.nothing("thread:message")
        monkeypatch.setattr(RoomChannelLayer, "missed", missed)
        await ana.call("resume", {"rooms": {"thread:42": since}})
        for n in (2, 3):
            await ana.expect("thread:message", message_id=str(n))


async def test_member_whose_rejoin_fails_stays_in_the_room(monkeypatch):
    async with bridging(), connected() as ana:
        await ana.call("join:thread", {"thread_id": "42"})
        monkeypatch.setattr(RoomChannelLayer, "missed", AsyncMock(side_effect=RedisDown("away")))
        again = {"thread_id": "42", "since": "1"}
        assert (await ana.refused("join:thread", again))["code"] == "unavailable"
        await add("thread:message", {"thread_id": 42, "message_id": 1})
        await ana.expect("thread:message", message_id="1")


async def test_room_held_back_for_a_resume_waits_also_when_the_resume_has_failed(monkeypatch):
    missed = RoomChannelLayer.missed

    async def fails_for_the_thread(layer: Any, listener: Any, since: str) -> Any:
        if listener.group.room == "thread:42":
            raise RedisDown("away")
        return await missed(layer, listener, since)

    async with bridging(), connected("hub", "9") as first_tab:
        since = first_tab.ready["rooms"]["user:9"]
        await add("user:notification", {"user_id": "9", "n": 1})
        await first_tab.expect("user:notification", n=1)
        token = issue(user_id="9", role="attendant")
        ana = Connection("/hub/?resume=1", headers=bearer(token))
        await ana.handshake()
        monkeypatch.setattr(RoomChannelLayer, "missed", fails_for_the_thread)
        rooms = {"user:9": since, "thread:42": "1"}
        assert (await ana.refused("resume", {"rooms": rooms}))["code"] == "unavailable"
        await ana.nothing("user:notification")
        monkeypatch.setattr(RoomChannelLayer, "missed", missed)
        await ana.call("resume", {"rooms": rooms})
        await ana.expect("user:notification", n=1)
        await ana.nothing("user:notification")
        await ana.disconnect()


@pytest.mark.parametrize("rooms", [None, [], {"thread:42": 1}, {"thread:42": ""}, "thread:42"])
async def test_resume_of_something_else_is_an_invalid_payload(rooms: Any):
    async with connected() as ana:
        assert (await ana.refused("resume", {"rooms": rooms}))["code"] == "invalid_payload"


# --- Typing and cursors ------------------------------------------------------------------------------


async def test_stopping_without_having_started_is_not_announced():
    async with connected("hub", "7") as ana, connected("hub", "8") as bob:
        for one in (ana, bob):
            await one.call("join:thread", {"thread_id": 42})
        await ana.call("typing:stop", {"thread_id": 42})
        await bob.nothing("thread:typing")


@pytest.mark.parametrize("how", ["disconnect", "leave", "silence"])
async def test_typist_who_goes_is_reported_as_stopped(how: str, monkeypatch):
    monkeypatch.setattr(ephemeral, "TYPING_SECONDS", 0.1 if how == "silence" else 3600.0)
    async with connected("hub", "8") as bob:
        await bob.call("join:thread", {"thread_id": 42})
        async with connected("hub", "7") as ana:
            await ana.call("join:thread", {"thread_id": 42})
            await ana.call("typing:start", {"thread_id": 42})
            await bob.expect("thread:typing", typing=True)
            if how == "leave":
                await ana.call("leave:thread", {"thread_id": 42})
            if how == "silence":
                await bob.expect("thread:typing", typing=False)
        if how != "silence":
            await bob.expect("thread:typing", typing=False)
        await bob.nothing("thread:typing")


async def test_typist_leaves_also_when_the_stop_cannot_be_announced(monkeypatch):
    async with connected("hub", "7") as ana:
        await ana.call("join:thread", {"thread_id": 42})
        await ana.call("typing:start", {"thread_id": 42})

        monkeypatch.setattr(NamespaceConsumer, "emit", AsyncMock(side_effect=RedisError("away")))
        await ana.call("leave:thread", {"thread_id": 42})
        assert (await ana.refused("typing:start", {"thread_id": 42}))["code"] == "not_in_room"


async def test_typist_who_is_expelled_is_reported_as_stopped(monkeypatch):
    monkeypatch.setattr(ephemeral, "TYPING_SECONDS", 3600.0)
    async with connected("hub", "8") as bob, connected("hub", "7") as ana:
        for one in (ana, bob):
            await one.call("join:thread", {"thread_id": 42})
        await ana.call("typing:start", {"thread_id": 42})
        await bob.expect("thread:typing", typing=True)
        [theirs] = ConnectionRegistry.current().connections_of("hub", "7")
        theirs.expel("thread:42", "expelled")
        await bob.expect("thread:typing", typing=False)


@pytest.mark.parametrize(("pause", "announced"), [(0.0, 4), (60.0, 1)])
async def test_repeated_start_keeps_the_typist_typing_and_is_not_announced_too_often(
    monkeypatch, pause: float, announced: int
):
    timers: list[asyncio.TimerHandle] = []

    def call_later(*arguments: Any) -> asyncio.TimerHandle:
        timers.append(asyncio.get_running_loop().call_later(*arguments))
        return timers[-1]

    monkeypatch.setattr(ephemeral, "TYPING_PAUSE", pause)
    async with connected("hub", "8") as bob, connected("hub", "7") as ana:
        for one in (ana, bob):
            await one.call("join:thread", {"thread_id": 42})
        monkeypatch.setattr(serial, "running_loop", lambda: SimpleNamespace(call_later=call_later))
        for _ in range(4):
            await ana.call("typing:start", {"thread_id": 42})
        assert [timer.cancelled() for timer in timers] == [True, True, True, False]
        await ana.call("typing:stop", {"thread_id": 42})
        seen = [(await bob.expect("thread:typing"))["data"]["typing"] for _ in range(announced + 1)]
        assert seen == [True] * announced + [False]


async def test_cursor_without_position_is_refused():
    async with connected() as ana:
        await ana.call("join:thread", {"thread_id": 42})
        assert (await ana.refused("cursor:move", {"thread_id": 42}))["message"] == "position: required"


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


# --- In turn -----------------------------------------------------------------------------------------


async def test_signal_waits_until_the_frame_is_answered(client_event):
    go_on = asyncio.Event()

    async def handler(connection: Any, payload: Empty) -> None:
        connection.soon(connection.terminate, CloseCode.NORMAL)
        await go_on.wait()

    client_event(handler)
    async with connected("portal") as ana:
        await ana.send("test:event", id="slow")
        await asyncio.sleep(0.05)
        go_on.set()
        await ana.expect("ack")
        assert (await ana.expect_close())[0] == CloseCode.NORMAL


@pytest.mark.parametrize(
    ("failure", "level"), [(RedisDown("gone"), "WARNING"), (ZeroDivisionError(), "ERROR")]
)
async def test_action_that_fails_is_logged_and_ends_nothing(failure: Exception, level: str, caplog):
    async def action() -> None:
        raise failure

    async with connected("portal") as ana:
        consumer().soon(action)
        await eventually(lambda: "action failed" in caplog.text)
        await ana.call("heartbeat")
    assert [entry.levelname for entry in caplog.records if entry.message == "action failed"] == [level]


async def test_action_for_a_connection_that_ended_is_left_out():
    ran = []

    async def action() -> None:
        ran.append(1)

    async with connected("portal"):
        inside = consumer()
    inside.soon(action)
    await asyncio.sleep(0.05)
    assert not ran


async def test_ending_twice_closes_once():
    async with connected("portal") as ana:
        inside = consumer()
        inside.terminate(CloseCode.REVOKED)
        inside.terminate(CloseCode.SILENT)
        assert await ana.expect_close() == (CloseCode.REVOKED, "revoked")
        assert await ana.communicator.receive_nothing()


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
