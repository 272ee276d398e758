"""How fast the frames of a client are parsed, and how many of them wait."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.frames import Opcode

from realtime.connections import rate_limit
from realtime.connections.registry import ConnectionRegistry
from realtime.server import websocket_protocol
from realtime.server.dispatcher import MOST_OPEN
from realtime.server.frame_reader import FRAMES_A_TURN
from tests.inprocess import eventually
from tests.server.serving import ONE, PING, closed, frame, opened, reply, server_side

FLOODS = {
    "pings": PING,
    "pongs": frame("", Opcode.PONG),
    "texts": ONE,
    "empty binaries": frame("", Opcode.BINARY),
    "fragments": frame("x", Opcode.CONT, fin=False),
    "empty fragments": frame("", Opcode.CONT, fin=False),
}


@pytest.mark.parametrize("limits", [{"RATE": 50, "BURST": 10, "INVALID_FRAMES": 0}])
@pytest.mark.parametrize("kind", FLOODS)
async def test_every_frame_is_charged_and_a_client_that_goes_on_is_closed_with_4429(
    port: int, kind: str, monkeypatch
):
    monkeypatch.setattr(rate_limit, "PERSISTENT_SECONDS", 0.5)
    monkeypatch.setattr(websocket_protocol, "CUT_SECONDS", 0.1)
    websocket = await opened(port)
    protocol = await server_side()
    parsed = 0
    receive = protocol.frame_received

    def count(frame: bytes, early: float) -> None:
        nonlocal parsed
        parsed += not protocol.close_sent
        receive(frame, early)

    monkeypatch.setattr(protocol, "frame_received", count)
    started = asyncio.get_running_loop().time()
    websocket.transport.write(frame("{", fin=False) if "fragments" in kind else b"")
    websocket.transport.write(FLOODS[kind] * 20_000)
    assert await closed(websocket) == 4429
    seconds = asyncio.get_running_loop().time() - started
    assert parsed <= 2 * (10 + 50 * seconds) + 1


@pytest.mark.parametrize("limits", [{"RATE": 0.5, "BURST": 1}])
async def test_slow_limit_is_no_pause_in_what_the_client_sends(port: int, monkeypatch):
    monkeypatch.setattr(rate_limit, "PERSISTENT_SECONDS", 1.2)
    monkeypatch.setattr(websocket_protocol, "CUT_SECONDS", 0.1)
    websocket = await opened(port)
    websocket.transport.write(PING * 1000)
    assert await closed(websocket) == 4429


@pytest.mark.parametrize("limits", [{"RATE": 0}])
async def test_one_turn_parses_some_frames_and_reads_no_more(port: int):
    websocket = await opened(port)
    protocol = await server_side()
    protocol.data_received(PING * 10_000)
    assert protocol.reader.unparsed == len(PING) * (10_000 - FRAMES_A_TURN)
    assert protocol.read_paused
    await eventually(lambda: not (protocol.reader.unparsed or protocol.read_paused))
    await websocket.send('{"event": "a:b", "id": 5}')
    await reply(websocket, 5)
    await websocket.close()


@pytest.mark.parametrize("limits", [{"RATE": 0, "FRAME_BYTES": 64 * 1024}])
@pytest.mark.parametrize(("size", "most"), [(30, MOST_OPEN), (60_000, 1), (20_000, 3)])
async def test_frames_that_wait_for_their_turn_are_few_and_small(port: int, size: int, most: int):
    websocket = await opened(port)
    protocol = await server_side()
    (connection,) = ConnectionRegistry.current().connections.values()
    async with connection.turn:  # type: ignore[attr-defined]
        tasks = len(protocol.tasks)
        protocol.data_received(frame('{"event":"a:b","id":1,"data":{"x":"%s"}}' % ("x" * size)) * 100)
        assert len(protocol.tasks) - tasks == most
        assert protocol.read_paused
    await eventually(lambda: not (protocol.reader.unparsed or protocol.read_paused))
    websocket.transport.abort()


@pytest.mark.parametrize("limits", [{"RATE": 5, "BURST": 6}])
async def test_message_in_fragments_of_which_one_came_too_early_is_refused_once(port: int):
    websocket = await opened(port)
    text = '{"event":"a:b","id":9}'
    websocket.transport.write(
        frame(text[:1], fin=False)
        + b"".join(frame(each, Opcode.CONT, fin=False) for each in text[1:8])
        + frame(text[8:], Opcode.CONT)
    )
    refused = (await reply(websocket, 9))["data"]
    assert refused["code"] == "rate_limited"
    assert 0 < refused["retry_after"] <= 1
    await asyncio.sleep(refused["retry_after"])
    await websocket.send('{"event":"a:b","id":10}')
    assert (await reply(websocket, 10))["data"]["code"] == "unknown_event"
    await websocket.close()


@pytest.mark.parametrize("limits", [{"RATE": 0.001, "BURST": 10, "FRAME_BYTES": 64 * 1024}])
async def test_large_frame_is_charged_by_its_bytes(port: int):
    """The third one passes, as the limit allows one more frame, and delays all that follow."""
    websocket = await opened(port)
    for frame_id in range(4):
        await websocket.send(json.dumps({"event": "a:b", "id": frame_id, "data": {"x": "x" * 60_000}}))
    codes = [(await reply(websocket, frame_id))["data"]["code"] for frame_id in range(4)]
    assert codes == ["unknown_event"] * 3 + ["rate_limited"]
    await websocket.close()
