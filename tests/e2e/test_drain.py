"""A socket server that stops lets no client in, closes every connection, and loses no message. No presence changes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

import realtime.client
from realtime.server.uvicorn_server import bind
from tests.e2e.harness import ROOT, Client, Stack, eventually, free_port, unique


@pytest.fixture
async def stack(redis_url: str, tmp_path: Path) -> AsyncIterator[Stack]:
    with Stack(tmp_path, redis_url, REALTIME_DRAIN_SECONDS="5") as stack:
        stack.start("runbridge")
        yield stack


@contextlib.asynccontextmanager
async def people(stack: Stack, count: int) -> AsyncIterator[list[Client]]:
    async with contextlib.AsyncExitStack() as all_clients:
        yield [await all_clients.enter_async_context(stack.client("hub")) for _ in range(count)]


async def test_no_client_is_let_in_while_all_leave_and_a_second_signal_ends_it_at_once(stack: Stack):
    server = stack.start_sockets(REALTIME_DRAIN_SECONDS="300")
    token = stack.token(unique("u"), "attendant")
    async with people(stack, 5):
        assert (await stack.http("GET", "/readyz")).status == 200
        server.signal(SIGTERM)
        await eventually(lambda: '"draining"' in server.output)
        ready = await stack.http("GET", "/readyz")
        assert (ready.status, b"draining" in ready.body) == (503, True)
        assert (await stack.http("GET", "/healthz")).status == 200
        refused = await stack.handshake(token=token)
        stack.assert_refused(refused, 503, "draining")
        assert int(refused.headers["retry-after"]) > 0
        assert (await stack.http("GET", "/hub/", [("Authorization", f"Bearer {token}")])).status == 503
        assert server.stop() == 0  # sends it again


@pytest.mark.slow
async def test_clients_are_not_closed_all_at_once(stack: Stack):
    server = stack.start_sockets()
    async with people(stack, 20) as clients:
        server.signal(SIGTERM)
        closes = [asyncio.create_task(client.expect_close()) for client in clients]
        await asyncio.wait(closes, return_when=asyncio.FIRST_COMPLETED)
        assert any(client.close_code is None for client in clients)
        assert set(await asyncio.gather(*closes)) == {1012}
    assert server.wait() == 0


@pytest.mark.slow
async def test_every_worker_drains(stack: Stack):
    command = (str(ROOT / "manage.py"), "runsockets", "--workers", "2")
    server = stack.start("workers", *command, SOCKETS_PORT=str(stack.port))
    async with people(stack, 10) as clients:
        server.signal(SIGTERM)
        assert {await client.expect_close() for client in clients} == {1012}
    assert server.wait() == 0


@pytest.mark.slow
async def test_workers_whose_supervisor_was_killed_drain_and_give_the_port_back(stack: Stack):
    command = (str(ROOT / "manage.py"), "runsockets", "--workers", "2")
    supervisor = stack.start("workers", *command, SOCKETS_PORT=str(stack.port))
    workers = children(supervisor.pid)
    assert len(workers) == 2
    async with people(stack, 10) as clients:
        supervisor.stop(SIGKILL)
        assert {await client.expect_close() for client in clients} == {1012}
    await eventually(lambda: not any(map(is_running, workers)))
    with bind("127.0.0.1", stack.port) as sock:
        sock.listen()


def children(pid: int) -> list[int]:
    """The workers of a supervisor (and not what Python starts to look after them)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return [each for each in found if b"spawn_main" in (Path("/proc") / str(each) / "cmdline").read_bytes()]


def is_running(pid: int) -> bool:
    """Whether a process has not ended. A zombie has."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_rolling_restart_loses_nothing_and_announces_no_user(stack: Stack):
    other = free_port()
    old = stack.start_sockets()
    stack.start_sockets(other)
    thread, users = unique("th"), [unique("u") for _ in range(8)]
    seen: dict[str, list[str]] = {user: [] for user in users}
    endings: list[int] = []
    joined: set[str] = set()
    sent: list[str] = []

    async def use(user: str) -> None:
        """A client that continues on the other server until it has received the last message."""
        token = stack.token(user, "attendant")
        addresses = itertools.cycle([stack.url("hub"), stack.url("hub", port=other)])
        async with realtime.client.Client(addresses.__next__, lambda: token) as client:
            client.join(thread)
            async for event in client:
                match event.name:
                    case "room:joined":
                        joined.add(user)
                    case "connection:lost":
                        endings.append(event.data["code"])
                    case "room:gap" | "room:left":
                        raise AssertionError(event)
                    case "thread:message":
                        seen[user].append(event.data["message_id"])
                        if event.data["message_id"] == "199":
                            return

    using = [asyncio.create_task(use(user)) for user in users]
    await eventually(lambda: len(joined) == len(users))
    for number in range(200):
        if number == 40:
            old.signal(SIGTERM)
        if number == 199:  # clients stay until the server has closed every connection
            assert await asyncio.to_thread(old.wait) == 0
        sent.append(str(number))
        stack.add("thread:message", {"thread_id": thread, "message_id": str(number)})
        await asyncio.sleep(0.02)
    await asyncio.gather(*using)
    assert endings == [1012] * len(users)
    for user in users:
        assert seen[user] == sent, user
        assert [entry["to"] for entry in stack.transitions(user)] == ["online"]
