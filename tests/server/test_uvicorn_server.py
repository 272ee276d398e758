"""The server process: what it relies on in uvicorn, how it is configured, its workers, and `runsockets`."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import resource
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from django.core.management import CommandError, call_command
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.supervisors import multiprocess
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from presence import store
from realtime.redis.client import client
from realtime.server import uvicorn_server as server
from realtime.server.uvicorn_server import (
    ACCEPTS,
    TESTED,
    Server,
    Worker,
    Workers,
    bind,
    configuration,
    raise_file_limit,
    without_brackets,
)
from tests.inprocess import HUB, PATIENCE
from tests.server.serving import opened, serving

# --- What we rely on in uvicorn ----------------------------------------------------------------------


def test_pinned_uvicorn_is_the_newest_that_is_called_tested():
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    (pin,) = [line for line in pins if line.startswith("uvicorn==")]
    assert pin.startswith("uvicorn=={}.{}.".format(*TESTED))


@pytest.mark.parametrize(
    ("version", "is_warned"), [("0.53.0", False), ("0.54.9", False), ("0.55.0", True), ("1.0", True)]
)
def test_newer_uvicorn_is_named_in_one_warning(monkeypatch, caplog, version: str, is_warned: bool):
    monkeypatch.setattr(uvicorn, "__version__", version)
    with caplog.at_level(logging.WARNING):
        server.warn_of_a_newer_uvicorn()
    sentence = f"uvicorn {version} is newer than 0.54, the newest that was tested"
    assert caplog.messages == [sentence] * is_warned


READ = ("0.53.", "0.54.")
"""The versions whose source was read. On others only the tests of behaviour say whether this project works."""


@pytest.mark.skipif(not uvicorn.__version__.startswith(READ), reason="its source was not read")
@pytest.mark.parametrize(
    ("owner", "name", "digest"),
    [
        (WebSocketsSansIOProtocol, "__init__", "631dcd744eab875f"),
        (WebSocketsSansIOProtocol, "connection_made", "f533ec93747c2cbf"),
        (WebSocketsSansIOProtocol, "connection_lost", "dd116afc4d8034e1"),
        (WebSocketsSansIOProtocol, "shutdown", "e8ace796ada616b7"),
        (WebSocketsSansIOProtocol, "send_500_response", "47eba6fe24f5ddb3"),
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


def test_connections_that_come_together_are_accepted_together(realtime_redis: str):
    """uvloop accepts one connection a turn of its loop from each listening socket."""
    together = 3 * ACCEPTS

    async def accepted_in_few_turns() -> int:
        async with serving() as (running, port):
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(together)]
            for _ in range(6):
                await asyncio.sleep(0)
            accepted = len(running.server_state.connections)
            for connection in clients:
                connection.close()
        return accepted

    assert uvloop.run(accepted_in_few_turns()) == together


async def test_server_that_stops_gives_its_lease_back(process: str):
    nodes = f"{store.base(HUB)}:nodes"
    async with serving() as (_, port):
        websocket = await opened(port)
        assert await client().zcard(nodes) == 1
        await websocket.close()
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
def test_address_on_which_another_process_listens_cannot_be_had(host: str):
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


def test_worker_leaves_when_its_supervisor_is_gone_and_not_before(monkeypatch):
    worker = Worker(configuration("127.0.0.1", 0), [])
    left: list[bool] = []
    monkeypatch.setattr(worker.server, "leave", lambda: left.append(True))
    asked = worker.parent_conn
    asked.send(b"ping")
    answering = threading.Thread(target=worker.always_pong)
    answering.start()
    assert asked.poll(PATIENCE)
    assert asked.recv() is False  # not started
    assert left == []
    asked.close()
    answering.join(PATIENCE)
    assert left == [True]
    assert not worker.server.force_exit
    worker.child_conn.close()


@pytest.mark.parametrize(("accepts", "printed"), [(True, "ready\n"), (False, "")])
def test_supervisor_says_ready_once_all_workers_accept(monkeypatch, capsys, accepts: bool, printed: str):
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
    assert capsys.readouterr().out == printed


# --- runsockets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--workers", "0"], "--workers must be at least 1"),
        (["--port", "65536"], "--port must be between 0 and 65535, got 65536"),
        (["--port", "-1"], "--port must be between 0 and 65535"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], printed: str):
    with pytest.raises(CommandError, match=printed) as caught:
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
