"""What a hostile client can send: each frame is answered or ends its connection as documented, and nobody else's."""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.harness import Client, Stack, unique

SEED = 20240229
FRAMES = 500
LARGEST = 64 * 1024

Frame = tuple[bytes, bool]
"""The payload, and whether it is sent as text."""


def _text(value: str) -> Frame:
    return value.encode(), True


def _json(value: Any) -> Frame:
    return _text(json.dumps(value))


def random_bytes(rng: random.Random) -> Frame:
    return rng.randbytes(rng.randrange(200)), False


def random_bytes_as_text(rng: random.Random) -> Frame:
    return b"\xff" + rng.randbytes(rng.randrange(200)), True


def cut_utf_8(rng: random.Random) -> Frame:
    return b'{"event":"heartbeat","data":{"x":"' + rng.choice(
        [b"\xc3", b"\xe2\x82", b"\xed\xa0\x80"]
    ) + b'"}}', True


def random_characters(rng: random.Random) -> Frame:
    return _text("".join(rng.choices(string.printable + "ü🎈\x00\u2028", k=rng.randrange(100))))


def deep(rng: random.Random) -> Frame:
    levels = rng.randrange(1_000, 30_000)
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    levels //= len(opening)
    inner = opening * levels + "1" + closing * levels * rng.randrange(2)
    return _text(
        rng.choice([inner, f'{{"event":"cursor:move","data":{{"thread_id":"1","position":{inner}}}}}'])
    )


def huge_number(rng: random.Random) -> Frame:
    number = rng.choice(["9" * 5000, "1e999999", "-1e-999999", "0." + "1" * 5000, "1" + "0" * 20_000])
    where = rng.choice(
        [
            '{{"event":"nonsense","id":{0}}}',
            '{{"event":{0}}}',
            '{{"event":"join:thread","data":{{"thread_id":{0}}}}}',
            "{0}",
        ]
    )
    return _text(where.format(number))


def zero_bytes(rng: random.Random) -> Frame:
    return _text(
        rng.choice(
            ["\x00", "\x00" * 1000, '{"event":"\x00"}', '{"event":"\\u0000"}', '\x00{"event":"heartbeat"}']
        )
    )


def wrong_types(rng: random.Random) -> Frame:
    odd = [None, True, 5, 1.5, [], ["x"], "", "x" * 200]
    return _json(
        {"event": rng.choice(odd), "data": rng.choice([*odd[1:], {}]), "id": rng.choice([[], {}, 1.5, True])}
    )


def wrong_payload(rng: random.Random) -> Frame:
    event = rng.choice(["join:thread", "leave:thread", "typing:start", "cursor:move"])
    return _json(
        {
            "event": event,
            "data": {"thread_id": rng.choice([None, True, 1.5, [], {}, "", "a b", "x" * 65, "é"])},
        }
    )


def unknown_event(rng: random.Random) -> Frame:
    name = "".join(rng.choices(string.ascii_letters + ":._-", k=rng.randrange(60)))
    return _json({"event": f"x{name}", "data": {"x": rng.random()}, "id": rng.randrange(10**6)})


def lone_surrogate(rng: random.Random) -> Frame:
    half = rng.choice(["\\ud800", "\\udfff", "\\ud83c\\ud83c", "\\udf88\\ud83c"])
    where = rng.choice(
        [
            '{{"event":"{0}"}}',
            '{{"event":"join:thread","data":{{"thread_id":"{0}"}}}}',
            '{{"event":"nonsense","id":"{0}"}}',
        ]
    )
    return _text(where.format(half))


def empty(rng: random.Random) -> Frame:
    return rng.choice([b"", b" ", b"\n" * 100]), True


def cut_off(rng: random.Random) -> Frame:
    whole = json.dumps(
        {"event": "join:thread", "data": {"thread_id": "42", "x": [1, {"a": None}]}, "id": "i"}
    )
    return _text(whole[: rng.randrange(1, len(whole) - 1)])


def no_object(rng: random.Random) -> Frame:
    return _json(rng.choice([None, True, 5, "x", [], [[]], [{"event": "heartbeat"}]]))


def duplicate_keys(rng: random.Random) -> Frame:
    return _text('{"event":"heartbeat","event":5,"data":{},"data":[]}')


def invalid_token(rng: random.Random) -> Frame:
    token = "".join(rng.choices(string.ascii_letters + ".", k=rng.randrange(1, 9000)))
    return _json({"event": "auth:refresh", "data": {"token": token}})


def too_large(rng: random.Random) -> Frame:
    size = LARGEST + rng.choice([1, 2, 1000, 40_000])
    return rng.choice([(b"a" * size, True), (b"\x00" * size, False), (b"[" * 100_000, True)])


KINDS: dict[Callable[[random.Random], Frame], int] = {
    random_bytes: 10,
    random_bytes_as_text: 1,
    cut_utf_8: 1,
    random_characters: 10,
    deep: 3,
    huge_number: 5,
    zero_bytes: 5,
    wrong_types: 10,
    wrong_payload: 10,
    unknown_event: 10,
    lone_surrogate: 5,
    empty: 3,
    cut_off: 10,
    no_object: 5,
    duplicate_keys: 1,
    invalid_token: 3,
    too_large: 1,
}
CLOSING = {random_bytes_as_text: 1007, cut_utf_8: 1007, too_large: 1009}
"""What ends the connection instead of being answered."""


def frames() -> Iterator[tuple[Callable[[random.Random], Frame], Frame]]:
    rng = random.Random(SEED)
    kinds = [*KINDS, *rng.choices(list(KINDS), list(KINDS.values()), k=FRAMES - len(KINDS))]
    rng.shuffle(kinds)
    for kind in kinds:
        yield kind, kind(rng)


async def send(client: Client, frame: Frame) -> None:
    payload, text = frame
    await client.websocket.send(payload, text=text)


async def test_malformed_frames_are_answered_or_end_their_own_connection_only(stack: Stack):
    pending = frames()
    sent = 0
    thread = unique("th")
    async with stack.client("hub") as bystander, stack.client("portal", threads=[thread]) as other:
        await other.call("join:thread", {"thread_id": thread})
        while sent < FRAMES:
            async with stack.client("portal") as client:
                for kind, frame in pending:
                    sent += 1
                    what = f"frame {sent} of kind {kind.__name__}: {frame[0][:80]!r}"
                    await send(client, frame)
                    if kind in CLOSING and stack.server == "uvicorn":
                        assert await client.expect_close() == CLOSING[kind], what
                        break
                    if kind is random_bytes_as_text or kind is cut_utf_8:
                        await client.expect_close()  # daphne's library picks the code
                        break
                    error = await client.next_frame(lambda frame: frame["event"] == "error", what)
                    assert error["data"]["code"] in {
                        "invalid_json",
                        "invalid_envelope",
                        "invalid_payload",
                        "unknown_event",
                        "not_in_room",
                        "forbidden",
                    }, what
                    if sent % 20 == 0:
                        await client.call("heartbeat")
                        await bystander.call("heartbeat")
                assert not client.received("ack") or all("id" in ack for ack in client.received("ack"))
        stack.add("thread:message", {"thread_id": thread, "message_id": 1})
        await other.expect("thread:message")
        assert not other.received("error")
        await bystander.call("heartbeat")
    assert sent == FRAMES
    stack.assert_calm()


async def test_fifty_invalid_frames_in_a_row_close_with_4400_and_nobody_else(stack: Stack):
    async with stack.client("portal") as hostile, stack.client("portal", hostile.user_id) as other_tab:
        for number in range(50):
            await hostile.raw([b"\x00", "{", "[]", '{"event":"x"}', '{"event":"join:thread"}'][number % 5])
        assert await hostile.expect_close() == 4400
        assert [frame["event"] for frame in hostile.frames].count("error") >= 49
        await other_tab.call("heartbeat")


async def test_invalid_utf_8_closes_with_1007(uvicorn_stack: Stack):
    async with uvicorn_stack.client("hub") as hostile, uvicorn_stack.client("hub") as other:
        await send(hostile, (b'{"event":"\xff"}', True))
        assert await hostile.expect_close() == 1007
        await other.call("heartbeat")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x83\x80\x00\x00\x00\x00",  # reserved opcode
        b"\xf1\x80\x00\x00\x00\x00",  # reserved bits
        b"\x81\x05hello",  # not masked
        b"\x80\x80\x00\x00\x00\x00",  # continuation of nothing
        b"\x89\xfe\x00\xff\x00\x00\x00\x00" + b"x" * 255,  # long ping
        b"\x09\x80\x00\x00\x00\x00",  # ping in fragments
        b"\x88\x81\x00\x00\x00\x00\x01",  # close with half a code
        b"\x88\x82\x00\x00\x00\x00\x00\x01",  # close with an odd code
    ],
    ids=repr,
)
async def test_frame_against_the_protocol_closes_with_1002(stack: Stack, raw: bytes):
    async with stack.client("portal") as hostile, stack.client("portal") as other:
        hostile.websocket.transport.write(raw)
        assert await hostile.expect_close() in {1002, 1006}
        await other.call("heartbeat")


async def test_cut_connections_leave_nothing_behind(stack: Stack):
    async def come_and_go(number: int) -> None:
        async with stack.client("hub", unique("u")) as client:
            if number % 3 == 0:
                client.websocket.transport.write(b"\x81\xfe\xff")
            elif number % 3 == 1:
                await client.send("heartbeat", id=1)
            client.drop()

    await asyncio.gather(*(come_and_go(number) for number in range(30)))
    async with stack.client("hub") as client:
        await client.call("heartbeat")
    stack.assert_calm()
