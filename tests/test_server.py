from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import logging
import resource
import socket
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from django.core.management import CommandError, call_command
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.supervisors import multiprocess
from uvicorn.supervisors.multiprocess import Multiprocess, Process
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from presence import store
from realtime import protocol as protocol_module
from realtime import server
from realtime.authentication import issue
from realtime.delivery import text_frame
from realtime.node import Node
from realtime.protocol import Inbox, _keepalives
from realtime.redis import client
from realtime.server import Server, WebSocketProtocol, Workers, bind, configuration, raise_file_limit
from tests.inprocess import PATIENCE, eventually

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
        (WebSocketsSansIOProtocol, "handle_connect", "fc648c2161ff8e13"),
        (WebSocketsSansIOProtocol, "send_receive_event_to_app", "a2b10de91477dc1d"),
        (WebSocketsSansIOProtocol, "handle_parser_exception", "ff5cf13c764fb332"),
        (WebSocketsSansIOProtocol, "handle_close", "62fd412b1f5b9e86"),
        (WebSocketsSansIOProtocol, "keepalive_timeout", "8e1ceb6ec446de9d"),
        (WebSocketsSansIOProtocol, "send", "d4919ed760ce9f7b"),
        (HttpToolsProtocol, "connection_made", "6efb565ff3d36b91"),
        (HttpToolsProtocol, "on_message_begin", "96d377fdc7c2baef"),
        (HttpToolsProtocol, "on_message_complete", "1fbad42dc31fc01f"),
        (HttpToolsProtocol, "handle_websocket_upgrade", "179c4f769386ab89"),
        (HttpToolsProtocol, "connection_lost", "c91a4c9bf2e29c55"),
        (Process, "server", "0bc0d378bdef89dd"),
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
async def port(process: str, settings, handshake_seconds: float) -> AsyncIterator[int]:
    settings.REALTIME = {
        **settings.REALTIME,
        "LIMITS": {"FRAME_BYTES": 2000, "HANDSHAKE_SECONDS": handshake_seconds},
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
    (protocol,) = set().union(*_keepalives[asyncio.get_running_loop()]._buckets)
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


@pytest.mark.parametrize(
    "request_line",
    [b"GET /hub/\xff HTTP/1.1\r\n", b"GET /hub/?token=\xff HTTP/1.1\r\n"],
    ids=["path", "query"],
)
async def test_protocol_does_not_rely_on_the_http_parser_to_refuse_them(process: str, request_line: bytes):
    config = configuration("127.0.0.1", 0)
    config.load()
    protocol, wire = WebSocketProtocol(config, uvicorn.server.ServerState(), {}), Wire()
    protocol.connection_made(wire)
    protocol.data_received(request_line + UPGRADE + b"\r\n")
    assert wire.written.startswith(b"HTTP/1.1 400")
    assert wire.closed
    protocol.connection_lost(None)


async def test_handshake_with_endless_headers_is_refused_at_once(port: int, caplog):
    many = b"".join(b"X-%d: y\r\n" % n for n in range(500))
    said = await answer(port, b"GET /hub/ HTTP/1.1\r\n" + UPGRADE + many + b"\r\n")
    assert said.startswith(b"HTTP/1.1 4")
    assert errors(caplog) == []


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
        (connection,) = await eventually(lambda: [*Node.current().connections.values()])
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
        await eventually(lambda: not Node.current().connections)


@pytest.mark.parametrize("handshake_seconds", [0.5])
@pytest.mark.parametrize("beginning", [b"", b"GET /hub/ HT", b"GET /hub/ HTTP/1.1\r\nHost: h\r\n"])
async def test_request_that_never_ends_is_cut(port: int, beginning: bytes):
    started = asyncio.get_running_loop().time()
    assert await answer(port, beginning) == b""
    assert asyncio.get_running_loop().time() - started > 0.4


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
    nodes = f"{store.base()}:nodes"
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
