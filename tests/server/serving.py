"""Clients of a server in the test's own process, and the bytes that they send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from realtime.auth.issuing import issue
from realtime.connections.registry import ConnectionRegistry
from realtime.server.uvicorn_server import Server, bind, configuration
from tests.inprocess import PATIENCE, eventually

UPGRADE = (
    b"Host: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: h\r\n"
CLOSE = b"Connection: close\r\n"


def frame(text: str, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return Frame(opcode, text.encode(), fin).serialize(mask=True)


ONE, TWO = frame('{"event":"a:b","id":1}'), frame('{"event":"a:b","id":2}')
PING = frame("", Opcode.PING)


def handshake_head() -> bytes:
    """The head of a handshake that is accepted, without its last line."""
    token = issue(user_id="7", role="attendant").encode()
    return b"GET /hub/ HTTP/1.1\r\nAuthorization: Bearer %b\r\n%b" % (token, UPGRADE)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Server, int]]:
    """A server in this process, and its port; afterwards it has stopped."""
    with bind("127.0.0.1", 0) as sock:
        running = Server(configuration("127.0.0.1", 0))
        task = asyncio.create_task(running.serve(sockets=[sock]))
        await eventually(lambda: running.started)
        yield running, sock.getsockname()[1]
        running.should_exit = True
        await asyncio.wait_for(task, PATIENCE)


async def opened(port: int, **options: Any) -> ClientConnection:
    token = issue(user_id="7", role="attendant")
    websocket = await connect(
        f"ws://127.0.0.1:{port}/hub/",
        additional_headers={"Authorization": f"Bearer {token}"},
        compression=None,
        **options,
    )
    assert json.loads(await websocket.recv())["event"] == "connection:ready"
    return websocket


async def reply(websocket: ClientConnection, frame_id: int) -> dict[str, Any]:
    """The answer to the frame with that id."""
    async with asyncio.timeout(PATIENCE):
        while (received := json.loads(await websocket.recv())).get("id") != frame_id:
            pass
    return received


async def closed(websocket: ClientConnection) -> int | None:
    """The code it is closed with."""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionClosed):
            async for _ in websocket:
                pass
        await websocket.wait_closed()
    return websocket.close_code


async def answer(port: int, request: bytes) -> bytes:
    """Everything that the server answers these bytes with before it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(PATIENCE):
        received = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    return received


async def server_side() -> Any:
    """The server's end of the only connection, once it needs no application any more."""
    (connection,) = await eventually(lambda: [*ConnectionRegistry.current().connections.values()])
    protocol = connection.outlet.writer
    await eventually(lambda: protocol.is_handed_over)
    return protocol


@contextlib.asynccontextmanager
async def deaf_peer(port: int) -> AsyncIterator[socket.socket]:
    """A client that has connected and reads nothing; afterwards the server has to have forgotten it."""
    loop = asyncio.get_running_loop()
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        await loop.sock_connect(peer, ("127.0.0.1", port))
        await loop.sock_sendall(peer, handshake_head() + b"\r\n")
        yield peer
        await eventually(lambda: not ConnectionRegistry.current().connections)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info
    ]
