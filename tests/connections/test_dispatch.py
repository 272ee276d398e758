"""Frames of a client, and the handlers of its events."""

from __future__ import annotations

import gc
from typing import Any, TypedDict
from uuid import UUID

import pytest
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from redis.exceptions import ConnectionError as RedisDown

from realtime.connections import rate_limit
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.envelope import ErrorCode, EventError
from realtime.protocol.payloads import Empty, Id
from tests.connections.support import consumer
from tests.inprocess import connected

pytestmark = pytest.mark.usefixtures("process")


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


@pytest.mark.parametrize("failure", [RedisDown("gone"), TimeoutError(), ConnectionRefusedError()])
async def test_handler_that_lost_a_server_is_unavailable(client_event, failure: Exception):
    async def handler(connection: Any, payload: Empty) -> None:
        raise failure

    client_event(handler)
    async with connected("portal") as ana:
        assert (await ana.refused("test:event"))["code"] == "unavailable"
        await ana.call("heartbeat")
