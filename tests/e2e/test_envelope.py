"""What a frame may be, and that it is answered exactly once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.harness import Client, Stack, unique


async def answer_to(client: Client, frame: str | bytes) -> dict[str, Any]:
    """The answer to this frame, an ack or an error."""
    await client.raw(frame)
    return await client.next_frame(
        lambda frame: frame["event"] in {"ack", "error"}, f"an answer to {frame[:80]!r}"
    )


async def error_of(client: Client, frame: str | bytes) -> tuple[str, object]:
    """The code of the error that answers this frame, and the error's id (... = none)."""
    answer = await answer_to(client, frame)
    assert answer["event"] == "error", answer
    assert isinstance(answer["data"]["message"], str)
    assert answer["data"]["message"]
    return answer["data"]["code"], answer.get("id", ...)


async def test_frame_with_an_id_is_answered_exactly_once_in_order(stack: Stack):
    async with stack.client("hub") as client:
        thread = unique("th")
        for number in range(100):
            event = ("heartbeat", "join:thread", "nonsense:event", "leave:thread")[number % 4]
            await client.send(event, {"thread_id": thread}, id=number)
        for number in range(100):
            await client.next_frame(lambda frame, number=number: frame.get("id") == number, str(number))
        await client.nothing("ack", "error", within=0.2)
        answers = [frame for frame in client.frames if frame["event"] in {"ack", "error"}]
        assert [frame["id"] for frame in answers] == list(range(100))
        assert [frame["event"] for frame in answers] == ["ack", "ack", "error", "ack"] * 25


@pytest.mark.parametrize("extra", [{}, {"id": None}])
async def test_frame_without_an_id_is_not_acknowledged(stack: Stack, extra: dict[str, Any]):
    async with stack.client("portal") as client:
        await client.send("heartbeat", **extra)
        await client.send("leave:thread", {"thread_id": "1"}, **extra)
        await client.call("heartbeat")
        assert len(client.received("ack")) == 1
        assert not client.received("error")


@pytest.mark.parametrize(
    ("frame", "code", "frame_id"),
    [
        ("{", "invalid_json", ...),
        (b'{"event":"heartbeat","id":1}', "invalid_envelope", ...),
        ('{"event":"heartbeat","id":1.5}', "invalid_envelope", ...),
        ('{"event":"heartbeat","data":[],"id":"i"}', "invalid_envelope", "i"),
        ('{"event":"thread:message","id":"i"}', "unknown_event", "i"),
        ('{"event":"join:thread","data":{"thread_id":1.0},"id":"i"}', "invalid_payload", "i"),
        ('{"event":"presence:away","id":"i"}', "forbidden", "i"),
        ('{"event":"join:thread","data":{"thread_id":1},"id":"i"}', "forbidden", "i"),
        ('{"event":"typing:start","data":{"thread_id":"1"},"id":"i"}', "not_in_room", "i"),
    ],
)
async def test_refusal_has_a_code_and_the_frames_id(
    stack: Stack, frame: str | bytes, code: str, frame_id: object
):
    async with stack.client("portal") as client:
        assert await error_of(client, frame) == (code, frame_id)
        await client.call("heartbeat")


async def test_fragmented_frame_is_one_frame(stack: Stack):
    async with stack.client("portal") as client:
        await client.websocket.send(iter(['{"event":"heart', 'beat","id":', '"ünï"}']))
        assert (await client.next_frame(lambda frame: frame.get("id") == "ünï", "ack"))["event"] == "ack"


async def test_largest_frame_is_accepted(stack: Stack):
    async with stack.client("hub") as client:
        thread = unique("th")
        await client.call("join:thread", {"thread_id": thread})
        frame = json.dumps({"event": "heartbeat", "id": 1, "data": {"x": ""}})
        frame = frame.replace('""', f'"{"a" * (64 * 1024 - len(frame))}"')
        assert len(frame) == 64 * 1024
        assert (await answer_to(client, frame))["event"] == "ack"


async def test_frame_beyond_the_largest_closes_with_1009(uvicorn_stack: Stack):
    async with uvicorn_stack.client("portal") as client, uvicorn_stack.client("portal") as other:
        await client.raw("a" * (64 * 1024 + 1))
        assert await client.expect_close() == 1009
        await other.call("heartbeat")
