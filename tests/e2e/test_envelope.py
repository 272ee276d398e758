"""What a frame may be, and that it is answered exactly once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.e2e.harness import Client, Stack, unique


async def answer_to(client: Client, frame: str | bytes) -> dict[str, Any]:
    """The answer to this frame, whatever it is."""
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


@pytest.mark.parametrize(
    "frame_id", ["a", "", "x" * 64, "ünï 🎈", "a\nb", 0, 1, -1, 2**53 - 1, -(2**53) + 1], ids=repr
)
async def test_id_comes_back_as_it_was(stack: Stack, frame_id: object):
    async with stack.client("portal") as client:
        answer = await answer_to(client, json.dumps({"event": "heartbeat", "id": frame_id}))
        assert answer == {"event": "ack", "id": frame_id, "data": {}}
        assert type(answer["id"]) is type(frame_id)
        await client.nothing(within=0.1)


@pytest.mark.parametrize(
    "frame_id", [True, False, 1.5, 1e3, "x" * 65, 2**53, -(2**53), 2**64, 10**40, [], {}, ["a"]], ids=repr
)
async def test_odd_id_is_refused_and_not_repeated(stack: Stack, frame_id: object):
    async with stack.client("portal") as client:
        frame = json.dumps({"event": "heartbeat", "id": frame_id})
        assert await error_of(client, frame) == ("invalid_envelope", ...)


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


async def test_error_of_a_frame_without_an_id_has_none(stack: Stack):
    async with stack.client("portal") as client:
        for frame in (
            {"event": "nonsense"},
            {"event": "nonsense", "id": None},
            {"event": "join:thread", "data": {}},
            {"event": "typing:start", "data": {"thread_id": "1"}},
        ):
            assert (await error_of(client, json.dumps(frame)))[1] is ...


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ('{"event":"nonsense","id":"i"}', "unknown_event"),
        ('{"event":"Heartbeat","id":"i"}', "unknown_event"),
        ('{"event":" heartbeat","id":"i"}', "unknown_event"),
        ('{"event":"","id":"i"}', "unknown_event"),
        ('{"event":"thread:message","id":"i"}', "unknown_event"),
        ('{"event":"ack","id":"i"}', "unknown_event"),
        ('{"event":"user:disconnect","data":{"user_id":1,"namespace":"hub"},"id":"i"}', "unknown_event"),
        ('{"data":{},"id":"i"}', "invalid_envelope"),
        ('{"event":null,"id":"i"}', "invalid_envelope"),
        ('{"event":5,"id":"i"}', "invalid_envelope"),
        ('{"event":["heartbeat"],"id":"i"}', "invalid_envelope"),
        ('{"event":"heartbeat","data":[],"id":"i"}', "invalid_envelope"),
        ('{"event":"heartbeat","data":"x","id":"i"}', "invalid_envelope"),
        ('{"event":"heartbeat","data":5,"id":"i"}', "invalid_envelope"),
        ('{"event":"heartbeat","data":true,"id":"i"}', "invalid_envelope"),
        ('{"event":"join:thread","id":"i"}', "invalid_payload"),
        ('{"event":"join:thread","data":null,"id":"i"}', "invalid_payload"),
        ('{"event":"join:thread","data":{},"id":"i"}', "invalid_payload"),
        ('{"event":"join:thread","data":{"thread_id":null},"id":"i"}', "invalid_payload"),
        ('{"event":"join:thread","data":{"thread_id":"a b"},"id":"i"}', "invalid_payload"),
        ('{"event":"join:thread","data":{"thread_id":1.0},"id":"i"}', "invalid_payload"),
        ('{"event":"join:thread","data":{"thread_id":"1","since":5},"id":"i"}', "invalid_payload"),
        ('{"event":"join:thread","data":{"thread_id":"1","since":""},"id":"i"}', "invalid_payload"),
        ('{"event":"cursor:move","data":{"thread_id":"1"},"id":"i"}', "invalid_payload"),
        ('{"event":"auth:refresh","data":{},"id":"i"}', "invalid_payload"),
        ('{"event":"auth:refresh","data":{"token":5},"id":"i"}', "invalid_payload"),
        ('{"event":"resume","data":{},"id":"i"}', "invalid_payload"),
        ('{"event":"resume","data":{"rooms":[]},"id":"i"}', "invalid_payload"),
        ('{"event":"resume","data":{"rooms":{"thread:1":5}},"id":"i"}', "invalid_payload"),
        ('{"event":"presence:away","id":"i"}', "forbidden"),
        ('{"event":"presence:online","data":{},"id":"i"}', "forbidden"),
        ('{"event":"presence:offline","id":"i"}', "forbidden"),
        ('{"event":"join:thread","data":{"thread_id":"not-mine"},"id":"i"}', "forbidden"),
        ('{"event":"typing:start","data":{"thread_id":"1"},"id":"i"}', "not_in_room"),
        ('{"event":"typing:stop","data":{"thread_id":"1"},"id":"i"}', "not_in_room"),
        ('{"event":"cursor:move","data":{"thread_id":"1","position":1},"id":"i"}', "not_in_room"),
    ],
)
async def test_refusal_has_a_code_and_the_frames_id(stack: Stack, frame: str, code: str):
    async with stack.client("portal") as client:
        assert await error_of(client, frame) == (code, "i")
        await client.call("heartbeat")


@pytest.mark.parametrize(
    "frame",
    [
        "",
        " ",
        "hello",
        "{",
        '{"event":"heartbeat"',
        '{"event":"heartbeat"}}',
        '{"event":"heartbeat"} {"event":"heartbeat"}',
        "{'event':'heartbeat'}",
        '{"event":NaN}',
        '{"event":"heartbeat","data":{"x":Infinity}}',
        '{"event":"heartbeat",}',
        '{"event":"hea\x00rtbeat"}',
        '{"event":"heartbeat","data":{"x":01}}',
        "\ufeff" + '{"event":"heartbeat"}',
    ],
    ids=repr,
)
async def test_what_is_not_json_is_said_to_be_invalid(stack: Stack, frame: str):
    async with stack.client("portal") as client:
        assert await error_of(client, frame) == ("invalid_json", ...)
        await client.call("heartbeat")


@pytest.mark.parametrize("frame", ["null", "[]", "5", '"heartbeat"', "true", '[{"event":"heartbeat"}]'])
async def test_json_that_is_no_object_is_no_envelope(stack: Stack, frame: str):
    async with stack.client("portal") as client:
        code, frame_id = await error_of(client, frame)
        assert code in {"invalid_envelope", "invalid_json"}
        assert frame_id is ...


@pytest.mark.parametrize("frame", [b"", b"\x00", b'{"event":"heartbeat","id":1}', b"\xff\xfe"], ids=repr)
async def test_binary_frame_is_no_envelope(stack: Stack, frame: bytes):
    async with stack.client("portal") as client:
        assert await error_of(client, frame) == ("invalid_envelope", ...)
        await client.call("heartbeat")


async def test_payload_error_names_the_field(stack: Stack):
    async with stack.client("portal") as client:
        for event, data, field in (
            ("join:thread", {}, "thread_id"),
            ("join:thread", {"thread_id": "a b"}, "thread_id"),
            ("join:thread", {"thread_id": "1", "since": 5}, "since"),
            ("cursor:move", {"thread_id": "1"}, "position"),
            ("auth:refresh", {}, "token"),
            ("resume", {"rooms": 5}, "rooms"),
        ):
            error = await client.refused(event, data)
            assert error["code"] == "invalid_payload"
            assert field in error["message"]


async def test_unknown_keys_are_ignored(stack: Stack):
    async with stack.client("hub") as client:
        thread = unique("th")
        frame = {
            "event": "join:thread",
            "data": {"thread_id": thread, "unknown": [1, {"a": None}]},
            "id": 1,
            "room": "user:1",
            "offset": "x",
            "namespace": "portal",
            "": {},
        }
        assert (await answer_to(client, json.dumps(frame)))["data"]["room"] == f"thread:{thread}"


@pytest.mark.parametrize("data", [..., None, {}, {"unknown": 1}], ids=repr)
async def test_data_may_be_left_out_when_there_is_none(stack: Stack, data: object):
    async with stack.client("hub") as client:
        frame = {"event": "heartbeat", "id": 1} | ({} if data is ... else {"data": data})
        assert (await answer_to(client, json.dumps(frame)))["event"] == "ack"


async def test_ids_may_be_whole_numbers_and_come_back_as_strings(stack: Stack):
    async with stack.client("hub") as client:
        assert (await client.call("join:thread", {"thread_id": 123456789}))["room"] == "thread:123456789"
        assert (await client.call("leave:thread", {"thread_id": "123456789"})) is not None


async def test_single_errors_never_close_but_fifty_in_a_row_do(stack: Stack):
    async with stack.client("portal") as client:
        for _ in range(3):
            for _ in range(49):
                await client.raw("no json")
            await client.call("heartbeat")
            await asyncio.sleep(1)  # or it would be too fast
        for _ in range(50):
            await client.raw("no json")
        assert await client.expect_close() == 4400
        assert len(client.received("error")) >= 3 * 49 + 49


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


async def test_many_connections_at_once_get_their_own_answers(stack: Stack):
    async def one(number: int) -> None:
        async with stack.client("portal", unique("u")) as client:
            for turn in range(5):
                await client.send("heartbeat", id=f"{number}-{turn}")
            for turn in range(5):
                await client.next_frame(lambda frame, turn=turn: frame.get("id") == f"{number}-{turn}", "ack")

    await asyncio.gather(*(one(number) for number in range(20)))
