"""Clients that cost next to nothing, so that a room can have a thousand members in the process of the test.

A member keeps the text frames that it receives as they came; it looks into one only when it is asked to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Any, Self

from bench.frames import Opcode, client_frame, parse
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import PATIENCE, READY, ROOT, Process, Stack, eventually

AT_ONCE = 64
"""Handshakes under way at the same time."""


class Member(asyncio.Protocol):
    """A connection that keeps what it receives."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.texts: list[bytes] = []
        """The text frames, in order."""
        self.received_bytes = 0
        self.closed_with: int | None = None
        """The code of the close frame."""
        self.is_over = False
        self.on_text: Callable[[bytes], None] | None = None
        """Called with each text frame as it comes."""
        self.transport: Any = None
        self._upgraded = False
        self._rest = b""
        self._news = asyncio.Event()
        self._ids = 0

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        data = self._rest + data if self._rest else data
        if not self._upgraded:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return
            assert b" 101 " in head[:20], head + data
            self._upgraded = True
        done = 0
        for opcode, payload, done in parse(data):  # noqa: B007
            self._take(opcode, payload)
        self._rest = data[done:]
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
        self._news.set()

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == Opcode.TEXT:
            self.texts.append(payload)
            if self.on_text is not None:
                self.on_text(payload)
        elif opcode == Opcode.PING:
            self.transport.write(client_frame(payload, Opcode.PONG))
        elif opcode == Opcode.CLOSE:
            self.closed_with = int.from_bytes(payload[:2], "big")
            self.transport.write(client_frame(payload[:2], Opcode.CLOSE))

    # --- What a client does ----------------------------------------------------------------------

    def send(self, event: str, data: dict[str, Any] | None = None, **more: Any) -> None:
        """Send one frame."""
        frame = {"event": event, "data": data or {}, **more}
        self.transport.write(client_frame(json.dumps(frame).encode()))

    def ask(self, event: str, data: dict[str, Any] | None = None) -> int:
        """Send one frame that wants an answer; returns its id."""
        self._ids += 1
        self.send(event, data, id=self._ids)
        return self._ids

    async def call(self, event: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one frame and return the data of its acknowledgement."""
        answer = await self.answer(self.ask(event, data))
        assert answer["event"] == "ack", answer
        return answer["data"]

    async def answer(self, frame_id: int) -> dict[str, Any]:
        """The answer to a frame."""
        mark = b'"id":"%d"' % frame_id, b'"id":%d' % frame_id

        def is_answer(text: bytes) -> bool:
            return text.startswith((b'{"event":"ack"', b'{"event":"error"')) and any(m in text for m in mark)

        return await self.frame(is_answer)

    async def over(self) -> int | None:
        """Wait for the end of the connection; returns the code of the close frame."""
        async with asyncio.timeout(PATIENCE):
            while not self.is_over:
                self._news.clear()
                await self._news.wait()
        return self.closed_with

    async def frame(self, matches: Callable[[bytes], bool]) -> dict[str, Any]:
        """The first frame of all that matches; waits for it."""
        seen = 0
        async with asyncio.timeout(PATIENCE):
            while True:
                for text in self.texts[seen:]:
                    if matches(text):
                        return json.loads(text)
                seen = len(self.texts)
                assert not self.is_over, (
                    f"closed with {self.closed_with}; got {[text[:200] for text in self.texts[-5:]]}"
                )
                self._news.clear()
                await self._news.wait()

    async def event(self, name: str, containing: str = "") -> dict[str, Any]:
        """The first frame of an event (with some text in it); waits for it."""
        head = b'{"event":"%s"' % name.encode()
        return await self.frame(lambda text: text.startswith(head) and containing.encode() in text)

    def pong(self) -> None:
        """Say that it is there, without being asked (RFC 6455 §5.5.3)."""
        self.transport.write(client_frame(b"", Opcode.PONG))

    def stop_reading(self) -> None:
        """Take nothing more from the kernel."""
        self.transport.pause_reading()

    def read_on(self) -> None:
        """Take again what comes."""
        self.transport.resume_reading()

    def is_waiting(self, message_id: str) -> bool:
        """Whether a message has arrived here, for a member that does not read."""
        wire = socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno()))
        try:
            return b'"message_id":"%s"' % message_id.encode() in wire.recv(1 << 20, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        finally:
            wire.close()

    def drop(self) -> None:
        """Cut the connection."""
        self.transport.abort()

    # --- What it received ------------------------------------------------------------------------

    def of_room(self, room: str, start: int = 0) -> list[dict[str, Any]]:
        """What came of a room: its publications, and `room:gap`."""
        mark = b'"room":"%s"' % room.encode()
        return [
            json.loads(text)
            for text in self.texts[start:]
            if mark in text and not text.startswith((b'{"event":"ack"', b'{"event":"connection:ready"'))
        ]

    def messages(self, room: str, start: int = 0) -> list[str]:
        """The ids of a room's messages, in order, and "gap" where the member was told of one."""
        return [
            "gap" if frame["event"] == "room:gap" else frame["data"]["message_id"]
            for frame in self.of_room(room, start)
            if frame["event"] in {"room:gap", "thread:message"}
        ]


class Product:
    """A Redis, a bridge and an instance, whose load comes from this process."""

    def __init__(self, directory: Path, **env: str) -> None:
        self.directory = directory
        self.env = env
        self.members: list[Member] = []
        self.tasks: list[asyncio.Task[Any]] = []
        """They end with the product."""

    def __enter__(self) -> Self:
        self.server = EmbeddedRedis(self.directory / "redis").__enter__()
        self.stack = Stack(self.directory, self.server.url, **_CALM | self.env)
        return self

    @contextlib.contextmanager
    def visited(self) -> Iterator[None]:
        """Members and tasks from here on end with the block."""
        try:
            yield
        finally:
            for task in self.tasks:
                task.cancel()
            for member in self.members:
                if member.transport is not None:
                    member.drop()
            self.tasks.clear()
            self.members.clear()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self.visited():
            pass
        for process in self.stack.processes:
            process.stop(SIGKILL)
        self.stack.redis.close()
        self.server.__exit__(None, None, None)
        if kind is None:
            self.stack.assert_calm()

    def start(self, *, bridge: dict[str, str] | None = None, sockets: dict[str, str] | None = None) -> Self:
        """Start a bridge and an instance at the same time."""
        self.bridge = self.stack.start("runbridge", ready="", **bridge or {})
        self.sockets = self.start_instance(self.stack.port, ready="", **sockets or {})
        for process in (self.bridge, self.sockets):
            process.wait_for()
        return self

    def start_with_fast_keepalive(self) -> None:
        """Start an instance that gives a silent client up within six seconds, and a bridge."""
        code = (
            "import runpy, sys; from realtime.server import keepalive; keepalive.PING_SECONDS = 2; "
            f"sys.argv = ['manage.py', 'runsockets']; runpy.run_path({str(ROOT / 'manage.py')!r}, run_name='__main__')"
        )
        self.bridge = self.stack.start("runbridge", ready="")
        self.sockets = self.stack.start("runsockets", "-c", code, SOCKETS_PORT=str(self.stack.port))
        self.bridge.wait_for()

    def start_instance(self, port: int, ready: str = READY, **env: str) -> Process:
        """Start one more instance."""
        return self.stack.start("runsockets", ready=ready, SOCKETS_PORT=str(port), **env)

    async def member(
        self,
        token: str,
        namespace: str = "portal",
        *,
        number: int = 0,
        port: int | None = None,
        query: str = "",
        narrow: bool = False,
    ) -> Member:
        """A member whose connection is ready. A `narrow` one lets the kernels keep next to nothing for it."""
        member = Member(number)
        wire = socket.socket()
        wire.setblocking(False)
        if narrow:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(wire, ("127.0.0.1", port or self.stack.port))
        await loop.create_connection(lambda: member, sock=wire)
        self.members.append(member)
        member.transport.write(
            (
                f"GET /{namespace}/{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                f"Authorization: Bearer {token}\r\n\r\n"
            ).encode()
        )
        await member.event("connection:ready")
        return member

    async def crowd(
        self,
        count: int,
        token: str,
        namespace: str = "portal",
        *,
        joins: Sequence[str] = (),
        port: int | None = None,
    ) -> list[Member]:
        """Many members, in the order in which they entered the threads."""
        members = await at_once(
            (lambda n=n: self.member(token, namespace, number=n, port=port)) for n in range(count)
        )
        for thread in joins:
            await at_once((lambda m=m, t=thread: m.call("join:thread", {"thread_id": t})) for m in members)
        return members

    def say(self, thread: str, *message_ids: str, size: int = 0, **more: Any) -> str:
        """Write messages to the bus, in one go; returns the id of the last entry."""
        return self.say_in_turn([thread], message_ids, size=size, **more)

    def say_in_turn(
        self, threads: Sequence[str], message_ids: Iterable[str], *, size: int = 0, **more: Any
    ) -> str:
        """Write each message to all of the threads before the next one, in one go."""
        with self.stack.redis.pipeline(transaction=True) as pipeline:
            for message_id in message_ids:
                for thread in threads:
                    data = {"thread_id": thread, "message_id": message_id, "text": "x" * size}
                    message = json.dumps(
                        {"event": "thread:message", "data": data, **more}, separators=(",", ":")
                    )
                    pipeline.xadd(self.stack.key("stream"), {"message": message})
            return pipeline.execute()[-1]

    def customer(self, *threads: str, user_id: str = "42", **claims: Any) -> str:
        """The token of a customer."""
        return self.stack.token(user_id, "customer", threads=list(threads), **claims)

    def cursor(self) -> str:
        """Up to where the bridges have read the bus."""
        return self.stack.redis.hget(self.stack.key("cursors"), self.stack.key("stream")) or "0-0"

    async def delivered(self, entry: str) -> None:
        """Wait until the bridges have dealt with an entry of the bus."""
        await eventually(lambda: _order(self.cursor()) >= _order(entry))


_CALM = {
    "REALTIME_LIMIT_USER_CONNECTIONS": "0",
    "REALTIME_LIMIT_HANDSHAKES": "0",
    "REALTIME_LIMIT_RATE": "0",
    "REALTIME_HISTORY_BYTES": str(64 << 20),
}


def _order(entry: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry.partition("-")
    return int(milliseconds), int(sequence)


async def at_once(work: Iterable[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Do all of it, `AT_ONCE` at a time; begun in the order that is given."""
    results: list[Any] = []
    todo: Iterator[Any] = iter(enumerate(work))

    async def worker() -> None:
        for number, each in todo:
            results.append((number, await each()))

    async with asyncio.TaskGroup() as workers:
        for _ in range(AT_ONCE):
            workers.create_task(worker())
    return [result for _, result in sorted(results, key=lambda pair: pair[0])]


@contextlib.asynccontextmanager
async def running(directory: Path, **env: str) -> AsyncIterator[Product]:
    """A product that runs, with settings of its own."""
    with Product(directory, **env) as product:
        await asyncio.to_thread(product.start)
        yield product


class Trigger:
    """Cuts all subscriptions from within a callback: a command on a connection of its own, done when it returns."""

    def __init__(self, path: Path) -> None:
        self._wire = socket.socket(socket.AF_UNIX)
        self._wire.connect(str(path))

    def cut_subscriptions(self) -> None:
        """`CLIENT KILL TYPE pubsub`."""
        self._wire.sendall(b"CLIENT KILL TYPE pubsub\r\n")
        assert self._wire.recv(64).startswith(b":")

    def close(self) -> None:
        """Give the connection back."""
        self._wire.close()
