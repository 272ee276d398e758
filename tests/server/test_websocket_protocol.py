"""One connection over a real socket: its handshake, its messages, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any

import pytest
import uvicorn
from websockets.frames import Opcode

from hub.consumers import HubConsumer
from realtime.connections.registry import ConnectionRegistry
from realtime.layers.outlets import text_frame
from realtime.server import websocket_protocol
from realtime.server.uvicorn_server import WebSocketProtocol, configuration
from tests.inprocess import PATIENCE, eventually
from tests.server.serving import (
    ONE,
    TWO,
    UPGRADE,
    answer,
    closed,
    deaf_peer,
    errors,
    frame,
    handshake_head,
    opened,
    reply,
    server_side,
)

# --- The handshake -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [b"/hub/\xc3\xa9", b"/hub/?token=\xff"], ids=["path", "query"])
async def test_bytes_outside_ascii_in_a_handshake_are_a_bad_request(port: int, target: bytes, caplog):
    request = b"GET %b HTTP/1.1\r\n%b\r\n" % (target, UPGRADE)
    assert (await answer(port, request)).startswith(b"HTTP/1.1 400")
    assert errors(caplog) == []


@pytest.mark.parametrize("name", [b"Sec-WebSocket-Protocol", b"Sec-WebSocket-Version", b"Sec-WebSocket-Key"])
async def test_header_that_is_wrong_is_named_without_its_value(port: int, name: bytes):
    """A client may put its token in the wrong place, and what a refusal says may be logged."""
    others = b"".join(line for line in UPGRADE.splitlines(keepends=True) if not line.startswith(name))
    refusal = await answer(port, b"GET /hub/ HTTP/1.1\r\n%b%b: a, bearer.s3cret=\r\n\r\n" % (others, name))
    assert refusal.startswith(b"HTTP/1.1 400")
    assert name in refusal
    assert b"s3cret" not in refusal


async def test_consumer_that_does_not_call_its_base_is_an_error_that_the_log_tells(port, caplog, monkeypatch):
    monkeypatch.setattr(HubConsumer, "__init__", lambda self, **_: None)
    async with asyncio.timeout(PATIENCE):
        assert (await answer(port, handshake_head() + b"\r\n")).startswith(b"HTTP/1.1 500")
    assert errors(caplog) == ["Exception in ASGI application"]


@pytest.mark.parametrize(
    ("query", "line", "status"),
    [(b"?token=s3cret", b"", b"401"), (b"", b"Sec-WebSocket-Protocol: a, bearer.s3cret=\r\n", b"400")],
    ids=["query", "protocol"],
)
async def test_refused_token_is_in_no_log_however_much_is_logged(
    port: int, caplog, query: bytes, line: bytes, status: bytes
):
    """A worker sets the project's `LOGGING` up after uvicorn has set its own levels."""
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, "uvicorn.error"):
        request = b"GET /hub/%b HTTP/1.1\r\n%b%b\r\n" % (query, UPGRADE, line)
        assert (await answer(port, request)).startswith(b"HTTP/1.1 " + status)
    assert "s3cret" not in caplog.text


async def test_fresh_token_is_in_no_log_however_much_is_logged(port: int, caplog):
    with caplog.at_level(logging.DEBUG, "uvicorn.error"):
        websocket = await opened(port)
        await websocket.send(
            json.dumps({"event": "auth:refresh", "id": 1, "data": {"token": "s3cret" * 100}})
        )
        await reply(websocket, 1)
        await websocket.close()
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")]
    assert not [line for line in lines if "s3cret" in line]


class Wire(asyncio.Transport):
    """What a protocol writes, without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


@pytest.mark.parametrize("target", [b"/hub/\xff", b"/hub/?token=\xff"], ids=["path", "query"])
async def test_protocol_does_not_rely_on_the_http_parser_to_refuse_them(process: str, target: bytes):
    config = configuration("127.0.0.1", 0)
    config.load()
    protocol, wire = WebSocketProtocol(config, uvicorn.server.ServerState(), {}), Wire()
    protocol.connection_made(wire)
    protocol.handshake_received("GET", target, [(b"host", b"h")])
    assert wire.written.startswith(b"HTTP/1.1 400")
    assert wire.closed
    protocol.connection_lost(None)


async def test_handshake_that_a_server_does_not_wait_for_when_it_stops_is_no_error(process: str, caplog):
    config = configuration("127.0.0.1", 0)
    config.load()
    protocol, wire = WebSocketProtocol(config, uvicorn.server.ServerState(), {}), Wire()
    asked = asyncio.Event()

    async def hang(*_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    protocol.app = hang
    protocol.connection_made(wire)
    protocol.handshake_received("GET", b"/hub/", [tuple(line.split(b": ")) for line in UPGRADE.splitlines()])
    await asked.wait()
    (task,) = protocol.tasks
    task.cancel()
    await eventually(lambda: wire.closed)
    assert wire.written.startswith(b"HTTP/1.1 500")
    assert errors(caplog) == []
    protocol.connection_lost(None)


@pytest.mark.parametrize(
    "frames",
    [b"\xff\xff\xff\xff", b"\x81\x05hello", b"\x89\x80\0\0\0\0" * 2000],
    ids=["nonsense", "text", "pings"],
)
@pytest.mark.parametrize("together", [True, False])
async def test_frames_before_the_handshake_is_accepted_wait_for_it(
    port: int, frames: bytes, together: bool, caplog
):
    head = handshake_head() + b"\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in [head + frames] if together else [head, frames]:
        writer.write(piece)
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert b"connection:ready" in await reader.readuntil(b"}}")
    writer.close()
    await eventually(lambda: not ConnectionRegistry.current().connections)
    assert errors(caplog) == []


# --- Messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [[b"\xff"], [b"hel", b"lo \xff"], [b"\xc3"], [b"\xed\xa0\x80"]], ids=repr)
async def test_invalid_utf8_is_1007_and_no_stack_trace(port: int, frames: list[bytes], caplog):
    websocket = await opened(port)
    await websocket.send(frames if len(frames) > 1 else frames[0], text=True)
    assert await closed(websocket) == 1007
    assert errors(caplog) == []


async def test_character_split_over_two_fragments_is_valid(port: int):
    websocket = await opened(port)
    await websocket.send([b'{"event": "\xc3', b'\xa9", "id": 1}'], text=True)
    assert (await reply(websocket, 1))["data"]["code"] == "unknown_event"
    await websocket.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [ONE, TWO],
        [ONE + TWO],
        [ONE[:9], ONE[9:] + TWO],
        [ONE + TWO[:1], TWO[1:]],
        [
            frame('{"event":"a:b"', fin=False),
            frame("", Opcode.PING),
            frame(',"id":1}', Opcode.CONT),
            TWO,
        ],
        [frame("x" * 125), frame("x" * 126), frame(""), ONE, TWO],
    ],
)
async def test_frames_are_the_same_however_they_arrive(port: int, pieces: list[bytes]):
    websocket = await opened(port)
    for piece in pieces:
        websocket.transport.write(piece)
        await asyncio.sleep(0.02)  # so that they are not read together
    answered = []
    async with asyncio.timeout(PATIENCE):
        while len(answered) < 2:
            received = json.loads(await websocket.recv())
            if received.get("id"):
                answered.append((received["id"], received["data"]["code"]))
    assert answered == [(1, "unknown_event"), (2, "unknown_event")]
    await websocket.close()


@pytest.mark.parametrize("limits", [{"RATE": 0, "FRAME_BYTES": 64 * 1024}])
async def test_fragments_are_kept_as_one(port: int):
    websocket = await opened(port)
    protocol = await server_side()
    text = json.dumps({"event": "a:b", "id": 9, "data": {"x": "y" * 5000}})
    websocket.transport.write(frame(text[0], fin=False))
    websocket.transport.write(b"".join(frame(each, Opcode.CONT, fin=False) for each in text[1:]))
    await eventually(lambda: protocol.frames and len(protocol.frames[0]) == len(text))
    assert len(protocol.frames) == 1
    websocket.transport.write(frame("", Opcode.CONT))
    assert (await reply(websocket, 9))["data"]["code"] == "unknown_event"
    await websocket.close()


async def test_new_message_amid_a_fragmented_one_is_1002(port: int):
    websocket = await opened(port)
    websocket.transport.write(frame("{", fin=False))
    await asyncio.sleep(0.02)
    websocket.transport.write(frame("{}"))
    assert await closed(websocket) == 1002


# --- The end -----------------------------------------------------------------------------------------


async def test_what_is_answered_after_the_connection_was_closed_is_forgotten(port: int, caplog):
    websocket = await opened(port)
    protocol = await server_side()
    protocol.data_received(ONE)
    protocol.data_received(b"\xff\xff\xff\xff")  # before anything of the first was handled
    assert await closed(websocket) == 1002
    await asyncio.sleep(0.1)
    assert errors(caplog) == []


@pytest.mark.parametrize("limits", [{"RATE": 0, "UNSENT_BYTES": 100_000}])
async def test_pongs_that_are_not_read_count_as_unsent(port: int):
    async with deaf_peer(port) as peer:
        protocol = await server_side()
        waiting = 0

        async def watch() -> None:
            nonlocal waiting
            while not protocol.transport.is_closing():
                waiting = max(waiting, protocol.transport.get_write_buffer_size())
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        pings = frame("x" * 125, Opcode.PING) * 100
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(OSError):
                while not protocol.disconnected:
                    await asyncio.get_running_loop().sock_sendall(peer, pings)
            await watching
        assert protocol.conn.close_sent.code == 4413
        # What is written in the tenth of a second in which a peer may yet catch up is not bounded by this limit.
        assert 100_000 < waiting < 5_000_000


CLOSE_FRAME = b"\x88\x82\x00\x00\x00\x00\x03\xe8"
"""1000, from a client (RFC 6455 §5.5.1)."""


@pytest.mark.parametrize("side", ["server", "client", "keepalive"])
async def test_peer_that_reads_nothing_more_does_not_keep_its_connection_for_ever(
    port: int, monkeypatch, side: str
):
    monkeypatch.setattr(websocket_protocol, "CUT_SECONDS", 0.1)
    async with deaf_peer(port) as peer:
        protocol = await server_side()
        protocol.close_timeout = 0.1
        while not protocol.transport.get_write_buffer_size():
            protocol.write_frames(text_frame(b"x" * 1000))
            await asyncio.sleep(0)
        if side == "server":
            protocol.close(4403, "revoked")
        elif side == "client":
            await asyncio.get_running_loop().sock_sendall(peer, CLOSE_FRAME)
        else:
            for _ in range(3):  # it was active; it is pinged; it has not answered
                protocol.check_alive()
        await eventually(lambda: protocol.disconnected)


# --- Its memory --------------------------------------------------------------------------------------


async def test_open_connection_keeps_nothing_in_dicts_of_its_own(port: int):
    websocket = await opened(port)
    await websocket.send('{"event": "join:thread", "data": {"thread_id": "1"}, "id": 1}')
    await reply(websocket, 1)
    protocol = await server_side()
    protocol.check_alive()
    (consumer,) = ConnectionRegistry.current().connections.values()
    assert vars(protocol) == vars(consumer) == {}
    await websocket.close()


@pytest.mark.parametrize("handshake_seconds", [2.0])
async def test_open_connection_outlives_the_time_for_the_handshake(port: int, handshake_seconds: float):
    websocket = await opened(port)
    await asyncio.sleep(handshake_seconds + 0.2)
    await websocket.send('{"event": "heartbeat", "id": 1}')
    assert (await reply(websocket, 1))["event"] == "ack"
    await websocket.close()
