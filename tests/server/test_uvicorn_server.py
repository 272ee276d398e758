from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import logging
import resource
import socket
import threading
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from django.core.management import CommandError, call_command
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.supervisors import multiprocess
from uvicorn.supervisors.multiprocess import Multiprocess, Process
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from presence import store
from realtime.auth.issuing import issue
from realtime.connections import rate_limit as limits_module
from realtime.connections.registry import ConnectionRegistry
from realtime.layers.outlets import text_frame
from realtime.redis.client import client
from realtime.server import uvicorn_server as server
from realtime.server import websocket_protocol as protocol_module
from realtime.server.uvicorn_server import (
    Server,
    WebSocketProtocol,
    Worker,
    Workers,
    bind,
    configuration,
    raise_file_limit,
    without_brackets,
)
from realtime.server.websocket_protocol import FRAMES_A_TURN, MOST_OPEN, Inbox, _keepalives, frame_size
from tests.inprocess import HUB, PATIENCE, eventually

# --- What we rely on in uvicorn ----------------------------------------------------------------------


def test_uvicorn_is_pinned_to_the_minor_version_these_tests_know():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    (pin,) = [line for line in project["dependencies"] if line.startswith("uvicorn")]
    assert pin == "uvicorn>=0.54,<0.55"
    assert uvicorn.__version__.startswith("0.54.")


@pytest.mark.parametrize(
    ("owner", "name", "digest"),
    [
        (WebSocketsSansIOProtocol, "data_received", "c89d394077d8841d"),
        (WebSocketsSansIOProtocol, "handle_events", "b2c9351a5d13493f"),
        (WebSocketsSansIOProtocol, "handle_text", "6ae523180cf04a01"),
        (WebSocketsSansIOProtocol, "handle_bytes", "2b22b21bf8feb4bf"),
        (WebSocketsSansIOProtocol, "handle_cont", "d96fe1479da61beb"),
        (WebSocketsSansIOProtocol, "handle_ping", "41bcf345d372c55c"),
        (WebSocketsSansIOProtocol, "receive", "1dc0e715390021a1"),
        (WebSocketsSansIOProtocol, "handle_connect", "fc648c2161ff8e13"),
        (WebSocketsSansIOProtocol, "send_receive_event_to_app", "a2b10de91477dc1d"),
        (WebSocketsSansIOProtocol, "handle_parser_exception", "ff5cf13c764fb332"),
        (WebSocketsSansIOProtocol, "handle_close", "62fd412b1f5b9e86"),
        (WebSocketsSansIOProtocol, "keepalive_timeout", "8e1ceb6ec446de9d"),
        (WebSocketsSansIOProtocol, "send", "d4919ed760ce9f7b"),
        (HttpToolsProtocol, "connection_made", "6efb565ff3d36b91"),
        (HttpToolsProtocol, "data_received", "010a7ae59a5d3b1a"),
        (HttpToolsProtocol, "on_message_begin", "96d377fdc7c2baef"),
        (HttpToolsProtocol, "on_header", "65d62c044f61fdbd"),
        (HttpToolsProtocol, "on_headers_complete", "1ea8589acfad92d8"),
        (HttpToolsProtocol, "on_body", "dba9c32aeba35b6a"),
        (HttpToolsProtocol, "on_response_complete", "64e254f28e389e76"),
        (HttpToolsProtocol, "timeout_keep_alive_handler", "8b53bf5f2e202970"),
        (RequestResponseCycle, "send", "abdd8601b326a8da"),
        (RequestResponseCycle, "receive", "8124ae006be71184"),
        (FlowControl, "pause_reading", "7c27388bb984e9ed"),
        (HttpToolsProtocol, "on_message_complete", "1fbad42dc31fc01f"),
        (HttpToolsProtocol, "handle_websocket_upgrade", "179c4f769386ab89"),
        (HttpToolsProtocol, "connection_lost", "c91a4c9bf2e29c55"),
        (Process, "server", "0bc0d378bdef89dd"),
        (Process, "target", "ad60ca4616de4c34"),
        (Process, "always_pong", "f045b1417fcf6c78"),
        (Process, "wait_until_ready", "facaf9df0601ae03"),
        (Multiprocess, "init_processes", "6c69f2a36bf55750"),
    ],
)
def test_what_we_override_in_uvicorn_is_what_we_read(owner: type, name: str, digest: str):
    """None of it is public API. When this fails: read what changed, check `realtime.server`, take the new digest."""
    member = inspect.getattr_static(owner, name)
    source = inspect.getsource(member.fget if isinstance(member, property) else member)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == digest


def test_state_we_touch_in_uvicorns_protocol_is_there(realtime_redis: str):
    config = configuration("127.0.0.1", 0)
    config.load()
    protocol = WebSocketProtocol(config, uvicorn.server.ServerState(), {}, asyncio.new_event_loop())
    protocol.loop.close()
    assert protocol.curr_msg_data_type == "bytes"
    assert protocol.frames == []
    assert protocol.close_sent is protocol.handshake_complete is protocol.handshake_initiated is False
    assert protocol.conn.handshake_exc is None
    assert protocol.conn.current_size is None
    assert protocol.conn.reader.buffer == b""


# --- A server in this process ------------------------------------------------------------------------


@pytest.fixture
def handshake_seconds() -> float:
    """How long a handshake may take: as long as a slow machine needs, unless a test waits for the end of it."""
    return PATIENCE


@pytest.fixture
def limits() -> dict[str, float]:
    """Other limits than the usual ones."""
    return {}


@pytest.fixture
async def port(
    process: str, settings, handshake_seconds: float, limits: dict[str, float]
) -> AsyncIterator[int]:
    settings.REALTIME = {
        **settings.REALTIME,
        "LIMITS": {"FRAME_BYTES": 2000, "HANDSHAKE_SECONDS": handshake_seconds, **limits},
    }
    sock = bind("127.0.0.1", 0)
    running = Server(configuration("127.0.0.1", 0))
    serving = asyncio.create_task(running.serve(sockets=[sock]))
    await eventually(lambda: running.started)
    yield sock.getsockname()[1]
    running.should_exit = True
    await asyncio.wait_for(serving, PATIENCE)
    sock.close()


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


async def closed(websocket: ClientConnection) -> int | None:
    """The code it is closed with."""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionClosed):
            async for _ in websocket:
                pass
        await websocket.wait_closed()
    return websocket.close_code


async def answer(port: int, request: bytes) -> bytes:
    """Everything the server says to these bytes before it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(PATIENCE):
        said = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    return said


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info
    ]


UPGRADE = (
    b"Host: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


async def test_server_says_ready_once_it_accepts(port: int, capsys: pytest.CaptureFixture[str]):
    await (await opened(port)).close()


async def test_refusal_reaches_the_client_as_http(port: int):
    with pytest.raises(InvalidStatus) as caught:
        await connect(f"ws://127.0.0.1:{port}/hub/")
    assert caught.value.response.status_code == 401
    body = caught.value.response.body
    assert body is not None
    assert json.loads(body)["error"]["code"] == "token_missing"


async def test_plain_http_is_served_on_the_same_port(port: int):
    said = await answer(port, b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200")
    assert b"server:" not in said.lower()


async def test_frame_beyond_the_limit_is_1009(port: int):
    websocket = await opened(port)
    await websocket.send("x" * 2001)
    assert await closed(websocket) == 1009


@pytest.mark.parametrize("frames", [[b"\xff"], [b"hel", b"lo \xff"], [b"\xc3"], [b"\xed\xa0\x80"]], ids=repr)
async def test_invalid_utf8_is_1007_and_no_stack_trace(port: int, frames: list[bytes], caplog):
    websocket = await opened(port)
    await websocket.send(frames if len(frames) > 1 else frames[0], text=True)
    assert await closed(websocket) == 1007
    assert errors(caplog) == []


async def test_character_split_over_two_fragments_is_valid(port: int):
    websocket = await opened(port)
    await websocket.send([b'{"event": "\xc3', b'\xa9", "id": 1}'], text=True)
    async with asyncio.timeout(PATIENCE):
        while (frame := json.loads(await websocket.recv())).get("id") != 1:
            pass
    assert frame["data"]["code"] == "unknown_event"
    await websocket.close()


def frame(text: str, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return Frame(opcode, text.encode(), fin).serialize(mask=True)


ONE, TWO = frame('{"event":"a:b","id":1}'), frame('{"event":"a:b","id":2}')


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
            answer = json.loads(await websocket.recv())
            if answer.get("id"):
                answered.append((answer["id"], answer["data"]["code"]))
    assert answered == [(1, "unknown_event"), (2, "unknown_event")]
    await websocket.close()


async def test_what_is_answered_after_the_connection_was_closed_is_forgotten(port: int, caplog):
    websocket = await opened(port)
    protocol = ours()
    await eventually(lambda: isinstance(protocol.queue, Inbox))
    protocol.data_received(ONE)
    protocol.data_received(b"\xff\xff\xff\xff")  # before anything of the first was dealt with
    assert await closed(websocket) == 1002
    await asyncio.sleep(0.1)
    assert errors(caplog) == []


async def test_new_message_amid_a_fragmented_one_is_1002(port: int):
    websocket = await opened(port)
    websocket.transport.write(frame("{", fin=False))
    await asyncio.sleep(0.02)
    websocket.transport.write(frame("{}"))
    assert await closed(websocket) == 1002


async def test_connection_survives_what_is_no_text(port: int):
    websocket = await opened(port)
    await websocket.send(b"\xff\xfe")
    async with asyncio.timeout(PATIENCE):
        while (frame := json.loads(await websocket.recv()))["event"] != "error":
            pass
    assert frame["data"]["code"] == "invalid_envelope"
    await websocket.close()


@pytest.mark.parametrize(
    "request_line",
    [b"GET /hub/\xc3\xa9 HTTP/1.1\r\n", b"GET /hub/?token=\xff HTTP/1.1\r\n"],
    ids=["path", "query"],
)
async def test_bytes_outside_ascii_in_a_handshake_are_a_bad_request(port: int, request_line: bytes, caplog):
    said = await answer(port, request_line + UPGRADE + b"\r\n")
    assert said.startswith(b"HTTP/1.1 400")
    assert errors(caplog) == []


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


# --- Requests ----------------------------------------------------------------------------------------


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: h\r\n"
CLOSE = b"Connection: close\r\n"


@pytest.mark.parametrize("rest", [b"\r\n", b""], ids=["complete", "without end"])
@pytest.mark.parametrize(
    "beginning", [HEALTH, b"GET /hub/ HTTP/1.1\r\n" + UPGRADE], ids=["http", "websocket"]
)
@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"X-%d: y\r\n" % n for n in range(500)),
        b"X: y\r\n" * 100,
        b"X: " + b"y" * 65_536 + b"\r\n",
        b"X: " + b"y" * 500_000 + b"\r\n",
        b"".join(b"X: %b\r\n" % (b"y" * 10_000) for _ in range(7)),
    ],
    ids=["many", "101", "long", "very long", "much"],
)
async def test_head_that_is_too_large_is_refused_at_once(
    port: int, beginning: bytes, headers: bytes, rest: bytes, caplog
):
    said = await answer(port, beginning + headers + rest)
    assert said.startswith(b"HTTP/1.1 431 ")
    assert said.count(b"HTTP/1.1") == 1
    assert errors(caplog) == []


async def test_verdict_and_handshake_take_the_same_heads(port: int):
    """A large cookie or a long token works for both, or for neither."""
    token = issue(user_id="7", role="attendant").encode()
    head = b"GET /hub/ HTTP/1.1\r\nAuthorization: Bearer %b\r\nCookie: %b\r\n" % (token, b"x" * 60_000)
    assert (await answer(port, head + CLOSE + b"Host: h\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + UPGRADE + b"\r\n")
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
    writer.close()


async def test_head_of_a_hundred_lines_is_served(port: int):
    said = await answer(port, HEALTH + b"X: y\r\n" * 97 + CLOSE + b"\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("behind", [(HEALTH + b"\r\n") * 5000, b"\x00\xff" * 50_000, b"\r\n" * 100_000])
async def test_only_one_request_at_a_time_is_read(port: int, behind: bytes):
    said = await answer(port, HEALTH + b"\r\n" + behind)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert (
        said.count(b"HTTP/1.1 200 ") == 1
    )  # blank lines begin no request: too many of them get 431 behind it
    assert b"connection: close\r\n" in said


async def test_handshake_by_an_older_http_is_refused(port: int):
    said = await answer(port, b"GET /hub/ HTTP/1.0\r\n" + UPGRADE + b"\r\n")
    assert said.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("handshake_seconds", [0.3])
async def test_line_break_behind_a_request_does_not_cut_its_answer(port: int, monkeypatch):
    async def slowly(self: Any) -> tuple[str, ...]:
        await asyncio.sleep(1.0)
        return ()

    monkeypatch.setattr("realtime.server.readiness.Readiness.reasons", slowly)
    said = await answer(port, b"GET /readyz HTTP/1.1\r\nHost: h\r\n" + CLOSE + b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")


async def test_requests_one_after_the_other_share_a_connection(port: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(PATIENCE):
        for _ in range(3):
            writer.write(HEALTH + b"\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            while not (await reader.readuntil(b"}")).endswith(b'alive"}'):
                pass
    writer.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000000\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx",
        b"POST /healthz HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"PUT /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n",
        b"GET /hub/ HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n",
        b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + b"Content-Length: 9\r\n\r\n",
    ],
    ids=["large", "small", "chunked", "expected", "verdict", "handshake"],
)
async def test_no_body_is_read(port: int, request_: bytes):
    said = await answer(port, request_ + b"x" * 100_000)
    assert said.startswith(b"HTTP/1.1 413 ")
    assert said.count(b"HTTP/1.1 ") == 1


async def test_upgrade_to_something_else_is_not_made(port: int, caplog):
    said = await answer(port, HEALTH + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI * HTTP/2.0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert errors(caplog) == []


@pytest.mark.parametrize(
    "frames", [b"\xff\xff\xff\xff", b"\x81\x05hello", b"\x89\x80\0\0\0\0" * 2000], ids=repr
)
@pytest.mark.parametrize("together", [True, False])
async def test_frames_before_the_handshake_is_accepted_wait_for_it(
    port: int, frames: bytes, together: bool, caplog
):
    token = issue(user_id="7", role="attendant").encode()
    head = b"GET /hub/ HTTP/1.1\r\nAuthorization: Bearer %b\r\n%b\r\n" % (token, UPGRADE)
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


# --- Floods ------------------------------------------------------------------------------------------

PING = frame("", Opcode.PING)
FLOODS = {
    "pings": PING,
    "pongs": frame("", Opcode.PONG),
    "texts": ONE,
    "empty binaries": frame("", Opcode.BINARY),
    "fragments": frame("x", Opcode.CONT, fin=False),
    "empty fragments": frame("", Opcode.CONT, fin=False),
}


def ours() -> Any:
    """The server's end of the only connection."""
    (protocol,) = set().union(*_keepalives[asyncio.get_running_loop()]._buckets)
    return protocol


@pytest.mark.parametrize("limits", [{"RATE": 50, "BURST": 10, "INVALID_FRAMES": 0}])
@pytest.mark.parametrize("kind", FLOODS)
async def test_every_frame_is_charged_and_who_goes_on_is_closed_with_4429(port: int, kind: str, monkeypatch):
    monkeypatch.setattr(limits_module, "PERSISTENT_SECONDS", 0.5)
    monkeypatch.setattr(protocol_module, "CUT_SECONDS", 0.1)
    websocket = await opened(port)
    protocol = ours()
    await eventually(lambda: isinstance(protocol.queue, Inbox))
    parsed = 0
    take = protocol._take

    def count(frame: bytes) -> None:
        nonlocal parsed
        parsed += not protocol.close_sent
        take(frame)

    monkeypatch.setattr(protocol, "_take", count)
    started = asyncio.get_running_loop().time()
    websocket.transport.write(frame("{", fin=False) if "fragments" in kind else b"")
    websocket.transport.write(FLOODS[kind] * 20_000)
    assert await closed(websocket) == 4429
    seconds = asyncio.get_running_loop().time() - started
    assert parsed <= 2 * (10 + 50 * seconds) + 1


@pytest.mark.parametrize("limits", [{"RATE": 0.5, "BURST": 1}])
async def test_slow_limit_is_no_pause_in_what_the_client_sends(port: int, monkeypatch):
    monkeypatch.setattr(limits_module, "PERSISTENT_SECONDS", 1.2)
    monkeypatch.setattr(protocol_module, "CUT_SECONDS", 0.1)
    websocket = await opened(port)
    websocket.transport.write(PING * 1000)
    assert await closed(websocket) == 4429


@pytest.mark.parametrize("limits", [{"RATE": 0}])
async def test_one_turn_parses_some_frames_and_reads_no_more(port: int):
    websocket = await opened(port)
    protocol = ours()
    await eventually(lambda: isinstance(protocol.queue, Inbox))
    protocol.data_received(PING * 10_000)
    assert len(protocol._received) == len(PING) * (10_000 - FRAMES_A_TURN)
    assert protocol.read_paused
    await eventually(lambda: not protocol._received)
    assert not protocol.read_paused
    await websocket.send('{"event": "a:b", "id": 5}')
    async with asyncio.timeout(PATIENCE):
        while json.loads(await websocket.recv()).get("id") != 5:
            pass
    await websocket.close()


@pytest.mark.parametrize("limits", [{"RATE": 0, "FRAME_BYTES": 64 * 1024}])
@pytest.mark.parametrize(("size", "most"), [(30, MOST_OPEN), (60_000, 1), (20_000, 3)])
async def test_frames_that_wait_for_their_turn_are_few_and_small(
    port: int, size: int, most: int, monkeypatch
):
    websocket = await opened(port)
    protocol = ours()
    await eventually(lambda: isinstance(protocol.queue, Inbox))
    (connection,) = ConnectionRegistry.current().connections.values()
    async with connection.turn:  # type: ignore[attr-defined]
        tasks = len(protocol.tasks)
        protocol.data_received(frame('{"event":"a:b","id":1,"data":{"x":"%s"}}' % ("x" * size)) * 100)
        assert len(protocol.tasks) - tasks == most
        assert protocol.read_paused
    await eventually(lambda: not protocol._received)
    assert not protocol.read_paused
    websocket.transport.abort()


@pytest.mark.parametrize("limits", [{"RATE": 0, "FRAME_BYTES": 64 * 1024}])
async def test_fragments_are_kept_as_one(port: int):
    websocket = await opened(port)
    protocol = ours()
    text = json.dumps({"event": "a:b", "id": 9, "data": {"x": "y" * 5000}})
    websocket.transport.write(frame(text[0], fin=False))
    websocket.transport.write(b"".join(frame(each, Opcode.CONT, fin=False) for each in text[1:]))
    await eventually(lambda: protocol.frames and len(protocol.frames[0]) == len(text))
    assert len(protocol.frames) == 1
    websocket.transport.write(frame("", Opcode.CONT))
    async with asyncio.timeout(PATIENCE):
        while (frame_ := json.loads(await websocket.recv())).get("id") != 9:
            pass
    assert frame_["data"]["code"] == "unknown_event"
    await websocket.close()


@pytest.mark.parametrize("limits", [{"RATE": 5, "BURST": 6}])
async def test_message_in_fragments_of_which_one_came_too_early_is_refused_once(port: int):
    websocket = await opened(port)
    text = '{"event":"a:b","id":9}'
    websocket.transport.write(
        frame(text[:1], fin=False)
        + b"".join(frame(each, Opcode.CONT, fin=False) for each in text[1:8])
        + frame(text[8:], Opcode.CONT)
    )
    async with asyncio.timeout(PATIENCE):
        while (refused := json.loads(await websocket.recv())).get("id") != 9:
            assert refused["event"] != "error"
    assert refused["data"]["code"] == "rate_limited"
    assert 0 < refused["data"]["retry_after"] <= 1
    await asyncio.sleep(refused["data"]["retry_after"])
    await websocket.send('{"event":"a:b","id":10}')
    async with asyncio.timeout(PATIENCE):
        while (answered := json.loads(await websocket.recv())).get("id") != 10:
            pass
    assert answered["data"]["code"] == "unknown_event"
    await websocket.close()


@pytest.mark.parametrize("limits", [{"RATE": 0, "UNSENT_BYTES": 100_000}])
async def test_pongs_that_are_not_read_count_as_unsent(port: int):
    loop = asyncio.get_running_loop()
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        await loop.sock_connect(peer, ("127.0.0.1", port))
        token = issue(user_id="7", role="attendant").encode()
        await loop.sock_sendall(
            peer, b"GET /hub/ HTTP/1.1\r\nAuthorization: Bearer %b\r\n%b\r\n" % (token, UPGRADE)
        )
        await eventually(lambda: loop in _keepalives and any(_keepalives[loop]._buckets))
        protocol = ours()
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
                    await loop.sock_sendall(peer, pings)
            await watching
        assert protocol.conn.close_sent.code == 4413
        # What is written in the tenth of a second in which a peer may yet catch up is not bounded by this limit.
        assert 100_000 < waiting < 5_000_000
        await eventually(lambda: not ConnectionRegistry.current().connections)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"", 2),
        (b"\x81", 2),
        (b"\x81\x80", 6),
        (b"\x81\x83\0\0\0\0", 9),
        (b"\x81\xfe", 8),
        (b"\x81\xfe\x00\x80\0\0\0\0", 136),
        (b"\x81\xff", 14),
        (b"\x81\xff" + (1000).to_bytes(8) + b"\0\0\0\0", 1014),
        (b"\x81\xff" + (1001).to_bytes(8) + b"\0\0\0\0", 14),
        (b"\x81\xff" + (2**63 - 1).to_bytes(8) + b"\0\0\0\0xxx", 17),
        (b"\x81\x05hel", 5),
        (b"\x83\x85", 2),
        (b"\x8b\x85", 2),
    ],
    ids=repr,
)
def test_size_of_a_frame_is_in_its_header(data: bytes, size: int):
    assert frame_size(data, 1000) == size


CLOSE_FRAME = b"\x88\x82\x00\x00\x00\x00\x03\xe8"
"""1000, from a client (RFC 6455 §5.5.1)."""


@pytest.mark.parametrize("who", ["server", "client", "keepalive"])
async def test_peer_that_reads_nothing_more_does_not_keep_its_connection_for_ever(
    port: int, monkeypatch, who: str
):
    monkeypatch.setattr(protocol_module, "CUT_SECONDS", 0.1)
    loop = asyncio.get_running_loop()
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        await loop.sock_connect(peer, ("127.0.0.1", port))
        token = issue(user_id="7", role="attendant").encode()
        await loop.sock_sendall(
            peer, b"GET /hub/ HTTP/1.1\r\nAuthorization: Bearer %b\r\n%b\r\n" % (token, UPGRADE)
        )
        (connection,) = await eventually(lambda: [*ConnectionRegistry.current().connections.values()])
        await eventually(lambda: connection._handed_over)  # type: ignore[attr-defined]
        protocol: Any = connection.outlet.writer  # type: ignore[attr-defined]
        protocol.close_timeout = 0.1
        while not protocol.transport.get_write_buffer_size():
            protocol.write_frames(text_frame(b"x" * 1000))
            await asyncio.sleep(0)
        if who == "server":
            protocol.close(4403, "revoked")
        elif who == "client":
            await loop.sock_sendall(peer, CLOSE_FRAME)
        else:
            protocol._heard, protocol._asked = False, True
            protocol.check_alive()
        await eventually(lambda: protocol.disconnected)
        await eventually(lambda: not ConnectionRegistry.current().connections)


@pytest.mark.parametrize("handshake_seconds", [0.5])
@pytest.mark.parametrize("beginning", [b"", b"\r\n", b"GET /hub/ HT", b"GET /hub/ HTTP/1.1\r\nHost: h\r\n"])
async def test_request_that_never_ends_is_cut(port: int, beginning: bytes):
    started = asyncio.get_running_loop().time()
    assert await answer(port, beginning) == b""
    assert asyncio.get_running_loop().time() - started > 0.4


@pytest.mark.parametrize("handshake_seconds", [0.5])
@pytest.mark.parametrize("again", [b"\r\n", b"GET /healthz HT"])
async def test_second_request_that_never_ends_is_cut(port: int, again: bytes):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEALTH + b"\r\n")
    async with asyncio.timeout(PATIENCE):
        await reader.readuntil(b"alive")
        while True:
            writer.write(again[:1])
            again = again[1:] or b"x"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    if (await reader.read(100)) == b"":
                        break
    writer.close()


@pytest.mark.parametrize("handshake_seconds", [2.0])
async def test_open_connection_outlives_the_time_for_the_handshake(port: int, handshake_seconds: float):
    websocket = await opened(port)
    await asyncio.sleep(handshake_seconds + 0.2)
    await websocket.send('{"event": "heartbeat", "id": 1}')
    async with asyncio.timeout(PATIENCE):
        while json.loads(await websocket.recv())["event"] != "ack":
            pass
    await websocket.close()


async def test_server_that_stops_gives_its_lease_back(process: str, settings):
    sock = bind("127.0.0.1", 0)
    running = Server(configuration("127.0.0.1", 0))
    serving = asyncio.create_task(running.serve(sockets=[sock]))
    await eventually(lambda: running.started)
    websocket = await opened(sock.getsockname()[1])
    nodes = f"{store.base(HUB)}:nodes"
    assert await client().zcard(nodes) == 1
    await websocket.close()
    running.should_exit = True
    await asyncio.wait_for(serving, PATIENCE)
    sock.close()
    assert await client().zcard(nodes) == 0


# --- How it is served --------------------------------------------------------------------------------


def test_frame_limit_switched_off_is_none_that_anybody_meets(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"FRAME_BYTES": 0}}
    assert configuration("127.0.0.1", 0).ws_max_size >= 2**31 - 1


def test_server_does_not_log_paths_which_may_hold_tokens():
    config = configuration("127.0.0.1", 0)
    assert config.access_log is False
    assert logging.getLogger("uvicorn.error").level >= logging.WARNING


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_address_that_somebody_listens_on_cannot_be_had(host: str):
    with bind(host, 0) as taken:
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            bind(host, taken.getsockname()[1])


def test_address_may_be_written_as_in_a_url():
    assert [without_brackets(host) for host in ("[::1]", "::1", "[::]", "host", "[", "")] == [
        *("::1", "::1", "::", "host", "[", "")
    ]
    with bind("[127.0.0.1]", 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_socket_is_inherited_by_workers():
    with bind("127.0.0.1", 0) as sock:
        assert sock.get_inheritable()


def test_file_limit_is_raised_to_what_the_system_allows(monkeypatch):
    limits = [(256, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: limits.append(pair))
    raise_file_limit()
    assert limits[-1] == (4096, 4096)
    raise_file_limit()
    assert len(limits) == 2


def test_file_limit_that_cannot_be_raised_stays(monkeypatch):
    def refuse(what: int, pair: tuple[int, int]) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_file_limit()


@pytest.mark.parametrize(("workers", "how"), [(1, "Server"), (4, "Workers")])
def test_one_process_serves_by_itself_and_several_have_a_supervisor(monkeypatch, workers: int, how: str):
    served: list[Any] = []
    monkeypatch.setattr(server, "raise_file_limit", lambda: None)
    monkeypatch.setattr(Server, "run", lambda self, sockets: served.append(("Server", sockets)))
    monkeypatch.setattr(Workers, "__init__", lambda self, config, sockets: served.append(config.workers))
    monkeypatch.setattr(Workers, "run", lambda self: served.append(("Workers", None)))
    server.serve("127.0.0.1", 0, workers)
    assert served[-1][0] == how
    assert how == "Server" or served[0] == 4


def test_worker_leaves_when_its_supervisor_is_gone_and_not_before():
    worker = Worker(configuration("127.0.0.1", 0), [])
    asked = worker.parent_conn
    asked.send(b"ping")
    answering = threading.Thread(target=worker.always_pong)
    answering.start()
    assert asked.poll(PATIENCE)
    assert asked.recv() is False  # not started
    assert not worker.server._asked_to_stop
    asked.close()
    answering.join(PATIENCE)
    assert worker.server._asked_to_stop
    assert not worker.server.force_exit
    worker.child_conn.close()


@pytest.mark.parametrize(("accepts", "said"), [(True, "ready\n"), (False, "")])
def test_supervisor_says_ready_once_all_workers_accept(monkeypatch, capsys, accepts: bool, said: str):
    class Worker:
        def __init__(self, config: Any, sockets: Any) -> None:
            self.started = False

        def start(self) -> None:
            self.started = True

        def wait_until_ready(self, timeout: float) -> bool:
            return self.started and accepts

    monkeypatch.setattr(multiprocess, "Process", Worker)
    workers = Workers.__new__(Workers)
    workers.config, workers.sockets, workers.processes_num = configuration("127.0.0.1", 0), [], 3
    workers.processes = []
    workers.init_processes()
    assert len(workers.processes) == 3
    assert capsys.readouterr().out == said


# --- runsockets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "--workers must be at least 1"),
        (["--port", "65536"], "--port must be between 0 and 65535, got 65536"),
        (["--port", "-1"], "--port must be between 0 and 65535"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], said: str):
    with pytest.raises(CommandError, match=said) as caught:
        call_command("runsockets", *arguments)
    assert caught.value.returncode == 2


def test_address_in_use_is_said_in_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            call_command("runsockets", "--host", "127.0.0.1", "--port", str(port))


def test_command_serves_what_it_was_told(monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr(server, "serve", lambda *arguments: told.append(arguments))
    call_command("runsockets", "--host", "0.0.0.0", "--port", "9000", "--workers", "2")
    assert told == [("0.0.0.0", 9000, 2)]
