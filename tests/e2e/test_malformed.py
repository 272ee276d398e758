"""A frame of a hostile client is answered, or ends its own connection with the documented code."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.harness import Stack, unique


async def test_fifty_invalid_frames_in_a_row_close_with_4400_and_close_no_other(stack: Stack):
    async with stack.client("portal") as hostile, stack.client("portal", hostile.user_id) as other_tab:
        for number in range(50):
            await hostile.raw([b"\x00", "{", "[]", '{"event":"x"}', '{"event":"join:thread"}'][number % 5])
        assert await hostile.expect_close() == 4400
        assert [frame["event"] for frame in hostile.frames].count("error") >= 49
        await other_tab.call("heartbeat")


async def test_invalid_utf_8_closes_with_1007(uvicorn_stack: Stack):
    async with uvicorn_stack.client("hub") as hostile, uvicorn_stack.client("hub") as other:
        await hostile.websocket.send(b'{"event":"\xff"}', text=True)
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
