"""The load generator's connections.

They must cost less than the servers they measure. So a connection only stores the bytes that the kernel returns, with
the time of each read, and parses them later (`read`): a read costs about a microsecond, however many frames it returns.
uvloop does the I/O; frames to be sent are prepared once.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bench.frames import Opcode, client_frame, parse
from bench.wires import MESSAGE, Kind, Position, Refused, Seen, User, Wire, mark

PATIENCE = 60.0
"""Seconds for one handshake, or one answer."""
PING_BYTES = 8
"""Longest ping on the wire, in bytes; every counted frame is longer."""
SOURCES = 8
"""Loopback addresses from which clients connect, in turn: each has only 28,000 ports, and closed ones rest a minute."""


class Connection(asyncio.Protocol):
    """The connection of one client."""

    __slots__ = (
        "_answer", "_chunks", "_rest", "_transport", "_upgraded", "answer", "attentive", "closed", "hello",
        "last_change", "last_message", "last_typing", "latencies", "on_event", "position", "ready",
        "received_bytes", "sequences", "signals", "user", "wire",
    )  # fmt: skip

    def __init__(self, wire: Wire, user: User, position: Position | None = None) -> None:
        self.wire = wire
        self.user = user
        self.position = position
        self.attentive = True
        """Parse received bytes at once: set while the client waits for an answer."""
        self.closed = False
        self.hello = b""
        self.answer = b""
        self.last_message = b""
        self.last_change = b""
        self.last_typing = b""
        self.received_bytes = 0
        """The count excludes pings, which continue without end."""
        self.sequences = array("L")
        """Messages received, in order."""
        self.latencies = array("q")
        """Nanoseconds from publishing to the read that returned the message, for each of `sequences`."""
        self.signals: list[tuple[str, str, int]] = []
        """Typing (`true`, `false`) and changes of presence (the status): the user, the state, and when it arrived."""
        self.on_event: Callable[[], None] | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer: asyncio.Future[None] | None = None
        self._chunks: list[tuple[int, bytes]] = []
        self._rest = b""
        self._upgraded = False
        self._transport: asyncio.Transport

    # --- asyncio.Protocol --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._transport.write(
            (
                f"GET {self.wire.path(self.user, self.position)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{self.wire.headers(self.user)}\r\n"
            ).encode()
        )

    def data_received(self, data: bytes) -> None:
        self._chunks.append((time.monotonic_ns(), data))
        if len(data) > PING_BYTES:
            self.received_bytes += len(data)
        if self.attentive or any(ping in data for ping in self.wire.pings):
            self.read()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._fail(Refused(f"connection lost: {exc or 'closed by the server'}"))

    # --- Actions of a client --------------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        if not self.closed:
            self._transport.write(client_frame(payload))

    async def ask(self, payload: bytes) -> None:
        """Send a frame and wait for the answer. Raises `Refused`."""
        self.attentive = True
        self._answer = asyncio.get_running_loop().create_future()
        self.send(payload)
        async with asyncio.timeout(PATIENCE):
            await self._answer

    def stop_reading(self) -> None:
        """Stop reading from the socket."""
        self._transport.pause_reading()

    def drop(self) -> None:
        """Abort the connection without a close frame."""
        self._transport.abort()

    # --- Received messages ----------------------------------------------------------------------------

    @property
    def seen(self) -> Seen:
        """What tells the client's position when it reconnects."""
        return Seen(self.hello, self.answer, self.last_message, self.last_change, self.last_typing)

    def has_seen(self, sequence: int) -> bool:
        """Return whether this message is the last one received."""
        if self.sequences and self.sequences[-1] == sequence:
            return True
        tail = (self._rest + b"".join(data[-1024:] for _, data in self._chunks[-4:]))[-1024:]
        return any(text in tail for text in mark(sequence))

    def read(self) -> None:
        """Parse the received bytes, answer pings, count events."""
        chunks, self._chunks = self._chunks, []
        for at, data in chunks:
            buffer = self._rest + data if self._rest else data
            if not self._upgraded:
                head, end, buffer = buffer.partition(b"\r\n\r\n")
                if not end:
                    self._rest = head
                    continue
                if b" 101 " not in head[:20]:
                    self._fail(Refused((head + b"\n" + buffer)[:300].decode(errors="replace")))
                    return
                self._upgraded = True
                if (opening := self.wire.opening(self.user)) is not None:
                    self.send(opening)
            done = 0
            for opcode, payload, done in parse(buffer):  # noqa: B007
                if opcode == Opcode.TEXT:
                    for message in self.wire.messages(payload):
                        self._text(message, at)
                elif opcode == Opcode.PING and not self.closed:
                    self._transport.write(client_frame(payload, Opcode.PONG))
                elif opcode == Opcode.CLOSE:
                    self._fail(Refused(f"closed with {int.from_bytes(payload[:2], 'big')} {payload[2:]!r}"))
            self._rest = buffer[done:]

    def _text(self, payload: bytes, at: int) -> None:
        try:
            kind, answer = self.wire.receive(payload, self.user, self.position)
        except Refused as refused:
            self._fail(refused)
            return
        if kind is Kind.EVENT:
            if not self._count(payload, at):
                self._note(payload, at)
        elif kind is Kind.READY:
            self.hello = payload
            if not self.ready.done():
                self.ready.set_result(None)
        elif kind is Kind.ANSWER:
            self.answer = payload
            self._count(payload, at)  # it may hold what was missed
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(None)
        if answer is not None:
            self.send(answer)

    def _count(self, payload: bytes, at: int) -> bool:
        """Count the messages in it; return whether there are any."""
        found = MESSAGE.findall(payload)
        for sequence, sent in found:
            self.sequences.append(int(sequence))
            self.latencies.append(at - int(sent))
            self.last_message = payload
            if self.on_event is not None:
                self.on_event()
        return bool(found)

    def _note(self, payload: bytes, at: int) -> None:
        if found := self.wire.typed.search(payload):
            self.last_typing = payload
        elif found := self.wire.changed.search(payload):
            self.last_change = payload
        if found:
            self.signals.append((found["user"].decode(), found["state"].decode(), at))

    def _fail(self, error: Refused) -> None:
        for future in (self.ready, self._answer):
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # there may be no waiter


@dataclass
class Crowd:
    """The connections of many clients."""

    wire: Wire
    ports: Sequence[int]
    connections: list[Connection] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    _opened: int = 0

    async def open(
        self, users: Iterable[User], *, at_once: int = 64, positions: Sequence[Position | None] | None = None,
        created: Callable[[Connection], None] = lambda _: None, tick: Callable[[int], None] = lambda _: None,
    ) -> list[float]:  # fmt: skip
        """Connect all clients, `at_once` at a time, and return the seconds that each took until it was ready."""
        todo = iter(zip(users, positions or _nothing(), strict=False))
        times: list[float] = []

        async def work() -> None:
            for user, position in todo:
                started = time.perf_counter()
                try:
                    connection = await self.connect(user, position, created)
                    if position is not None and (frame := self.wire.recovery(user, position)) is not None:
                        connection.send(frame)
                except (Refused, OSError) as error:  # TimeoutError is an OSError
                    self.refused[str(error)[:200]] += 1
                times.append(time.perf_counter() - started)
                tick(1)

        async with asyncio.TaskGroup() as workers:
            for _ in range(at_once):
                workers.create_task(work())
        return times

    async def connect(
        self,
        user: User,
        position: Position | None = None,
        created: Callable[[Connection], None] = lambda _: None,
    ) -> Connection:
        """Return a connection that is ready. Raises `Refused`, `OSError`.

        With several ports the user's id says which, as behind a load balancer that goes by it.
        """
        self._opened += 1
        source = f"127.0.0.{1 + self._opened % SOURCES}"

        def make() -> Connection:
            connection = Connection(self.wire, user, position)
            created(connection)
            return connection

        async with asyncio.timeout(PATIENCE):
            _, connection = await asyncio.get_running_loop().create_connection(
                make,
                "127.0.0.1",
                self.ports[zlib.crc32(user.id.encode()) % len(self.ports)],
                local_addr=(source, 0),
            )
            self.connections.append(connection)
            await connection.ready
        return connection

    async def join(self, at_once: int = 64) -> None:
        """Let every client join its thread."""
        todo = iter(self.connections)

        async def work() -> None:
            for connection in todo:
                await connection.ask(self.wire.join(connection.user))

        async with asyncio.TaskGroup() as workers:
            for _ in range(at_once):
                workers.create_task(work())

    def listen(self) -> None:
        """From now on only store the received bytes; `read` parses them."""
        for connection in self.connections:
            connection.attentive = False

    def read(self) -> None:
        """Parse all received bytes."""
        for connection in self.connections:
            connection.read()

    @property
    def received_bytes(self) -> int:
        return sum(connection.received_bytes for connection in self.connections)

    async def last(
        self, sequence: int, *, quiet: float, tick: Callable[[int], None] = lambda _: None
    ) -> None:
        """Wait until every client has received this message, or none has received a message for `quiet` seconds."""
        waiting = list(self.connections)
        received, since = -1, time.monotonic()
        while waiting and time.monotonic() - since < quiet:
            await asyncio.sleep(0.05)
            before = len(waiting)
            waiting = [connection for connection in waiting if not connection.has_seen(sequence)]
            tick(before - len(waiting))
            if (now := self.received_bytes) != received:
                received, since = now, time.monotonic()

    async def silence(self, quiet: float) -> None:
        """Wait until no client has received a message for `quiet` seconds."""
        await self.last(10**7, quiet=quiet)

    async def close(self) -> None:
        for connection in self.connections:
            if not connection.closed:
                connection.drop()
        await asyncio.sleep(0.1)  # until the server's ends have closed, too
        self.connections.clear()


def _nothing() -> Iterable[None]:
    while True:
        yield None


@asynccontextmanager
async def crowd(wire: Wire, ports: Sequence[int]) -> AsyncIterator[Crowd]:
    """Return a crowd that closes its connections at the end. Context manager."""
    people = Crowd(wire, ports)
    try:
        yield people
    finally:
        await people.close()
