"""What a flood costs: bounded CPU and memory, and the other clients notice nothing. Nothing here measures wall time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from bench.frames import client_frame
from bench.machine import cpu_seconds, resident_bytes
from tests.e2e.harness import PATIENCE, Process, Stack, eventually, free_port, unique

MIB = 2**20
ATTACKERS = 20
FLOOD = 512 * 1024
"""Bytes that each attacker sends."""
CPU_SECONDS = 2.0
"""A flood may cost so much more than the same time without one."""
MASK = b"\0\0\0\0"

FRAMES = {
    "pings": b"\x89\x80" + MASK,
    "pongs": b"\x8a\x80" + MASK,
    "one-byte texts": b"\x81\x81" + MASK + b"x",
    "empty binaries": b"\x82\x80" + MASK,
    "one-byte fragments": b"\x00\x81" + MASK + b"x",
}
"""What is sent again and again over a WebSocket."""
REQUESTS = {
    "header lines": (b"GET /healthz HTTP/1.1\r\n", b"a:\r\n"),
    "a header line": (b"GET /healthz HTTP/1.1\r\nX: ", b"xxxx"),
    "pipelined requests": (b"", b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"),
    "a body": (b"POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000000\r\n\r\n", b"xxxx"),
    "chunks": (b"POST /healthz HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
}
"""What is sent once, and again and again, over HTTP."""


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("floods")
    (directory / "tmp").mkdir()
    with Stack(
        directory, redis_url, TMPDIR=str(directory / "tmp"), REALTIME_LIMIT_INVALID_FRAMES="0"
    ) as stack:
        yield stack.start_all()


@pytest.fixture(scope="module")
def web(stack: Stack) -> tuple[Process, int]:
    """The web side of the same system, and its port."""
    port = free_port()
    return stack.start("runweb", WEB_PORT=str(port)), port


def spooled(process: Process, directory: Path) -> int:
    """Bytes in the files that a process has open there, also those without a name."""
    size = 0
    for each in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(each.readlink()).startswith(str(directory)):
                size += each.stat().st_size
    return size


class Cost:
    """What a process has spent since a moment."""

    def __init__(self, process: Process) -> None:
        self._pid = process.pid
        self._cpu = cpu_seconds([self._pid])
        self._resident = self.most_resident = resident_bytes(self._pid)

    def look(self) -> None:
        self.most_resident = max(self.most_resident, resident_bytes(self._pid))

    @property
    def cpu(self) -> float:
        return cpu_seconds([self._pid]) - self._cpu

    @property
    def memory(self) -> int:
        return self.most_resident - self._resident


async def others_notice_nothing(stack: Stack, port: int, cost: Cost, rounds: int = 25) -> None:
    """Messages are delivered and probes answered, again and again."""
    thread = unique("th")
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        for number in range(rounds):
            stack.add("thread:message", {"thread_id": thread, "message_id": str(number)})
            await client.expect("thread:message", message_id=str(number))
            assert (await stack.http("GET", "/healthz", port=port)).status == 200
            cost.look()
            await asyncio.sleep(0.05)


_usual: dict[int, float] = {}


async def usual_cpu(stack: Stack, port: int, process: Process) -> float:
    """CPU seconds that the process needs for the other clients alone."""
    if process.pid not in _usual:
        cost = Cost(process)
        await others_notice_nothing(stack, port, cost)
        _usual[process.pid] = cost.cpu
    return _usual[process.pid]


@contextlib.asynccontextmanager
async def attacked(*attacks: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    running = [asyncio.create_task(attack()) for attack in attacks]  # type: ignore[arg-type]
    try:
        yield
        for task in running:
            if task.done() and not isinstance(task.exception(), OSError):
                task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.parametrize("kind", FRAMES)
async def test_flood_of_frames_is_bounded_by_the_limit_of_each_connection(stack: Stack, kind: str):
    server = next(process for process in stack.processes if process.name == "runsockets")
    usual = await usual_cpu(stack, stack.port, server)
    async with contextlib.AsyncExitStack() as hostile:
        clients = [await hostile.enter_async_context(stack.client("portal")) for _ in range(ATTACKERS)]
        cost = Cost(server)
        for client in clients:
            client.websocket.transport.write(b"\x01\x81" + MASK + b"x" if "fragments" in kind else b"")
            client.websocket.transport.write(FRAMES[kind] * (FLOOD // len(FRAMES[kind])))
        await others_notice_nothing(stack, stack.port, cost)
        assert cost.memory < ATTACKERS * MIB
        assert cost.cpu < usual + CPU_SECONDS
        for client in clients:
            client.drop()


async def test_large_frames_beyond_the_limit_are_forgotten_as_soon_as_they_are_refused(stack: Stack):
    server = next(process for process in stack.processes if process.name == "runsockets")
    rooms = {f"thread:{number}": "5" for number in range(3000)}
    async with stack.client("portal") as client:
        frame = client_frame(json.dumps({"event": "resume", "data": {"rooms": rooms}}).encode())
        cost = Cost(server)
        client.websocket.transport.write(frame * 400)
        await others_notice_nothing(stack, stack.port, cost, rounds=60)
        assert client.received("error")
        assert cost.memory < 8 * MIB  # before: 3 MiB a second
        client.drop()


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("side", ["sockets", pytest.param("web", marks=pytest.mark.slow)])
async def test_flood_of_requests_is_cut(stack: Stack, web: tuple[Process, int], side: str, kind: str):
    server = next(process for process in stack.processes if process.name == "runsockets")
    process, port = web if side == "web" else (server, stack.port)
    usual = await usual_cpu(stack, port, process)
    first, again = REQUESTS[kind]
    connections = 0

    async def attack() -> None:
        """Send without end; come back when cut."""
        nonlocal connections
        while True:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            connections += 1
            try:
                writer.write(first)
                while True:
                    writer.write(again * (256 * 1024 // len(again)))
                    await writer.drain()
                    await asyncio.sleep(0.001)
            except OSError:
                pass
            finally:
                writer.transport.abort()

    cost = Cost(process)
    async with attacked(*[attack] * 4):
        await eventually(lambda: connections > 12)  # they are cut
        await others_notice_nothing(stack, port, cost)
        assert cost.memory < 30 * MIB
        assert cost.cpu < usual + CPU_SECONDS
        assert spooled(process, stack.directory / "tmp") < 8 * MIB


def most_resident(process: Process) -> int:
    """The most bytes of memory that a process has ever had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_bridge_that_finds_huge_messages_when_it_starts_reads_one_by_one(redis_url: str, tmp_path: Path):
    """A limit of memory would kill it again and again, and so every bridge after it."""
    with Stack(tmp_path, redis_url) as stack:
        usual = most_resident(stack.start("runbridge"))
        stack.processes[0].stop()
        for _ in range(60):
            stack.redis.xadd(stack.key("stream"), {"message": "x" * 2 * MIB})
        bridge = stack.start("runbridge")
        assert len(stack.dead_letters()) == 60
        assert most_resident(bridge) - usual < 60 * MIB
        stack.redis.delete(stack.key("stream"))


@pytest.mark.slow
async def test_slow_head_is_cut_on_the_web_side_too(stack: Stack, web: tuple[Process, int]):
    _, port = web
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n")
    async with asyncio.timeout(PATIENCE):
        while not reader.at_eof():
            writer.write(b"X: y\r\n")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    assert await reader.read(100) == b""
    writer.transport.abort()


async def test_page_takes_a_body_as_large_as_django_reads(stack: Stack, web: tuple[Process, int]):
    _, port = web

    async def status(size: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /token/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % size + b" " * size)
        async with asyncio.timeout(PATIENCE):
            line = await reader.readline()
        writer.transport.abort()
        return line.split(b" ")[1]

    assert await status(2_000_000) == b"400"
    assert await status(3_000_000) == b"413"
