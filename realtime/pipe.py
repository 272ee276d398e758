"""Connections to Redis that answer in order: what is sent in one turn of the loop is one write.

For what is sent for every message and every handshake. redis-py's way of sending a command, made for comfort, costs
several times what delivering a message costs.

What was sent and has no answer when its connection is lost may have been done or not: it fails, and is not sent again
here. What was not written yet, or what Redis says it has not done (MOVED, ASK, TRYAGAIN), is sent again. Only a script
does not follow an ASK: it may name its keys by their first part, which is never there, and then a room of which nothing
has been moved yet would begin anew at the other server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import hiredis
from redis import exceptions
from redis.commands.core import AsyncScript
from redis.exceptions import AskError, MovedError, RedisError, TryAgainError

from realtime.connection import Argument, Liveness, connect, pack, patience
from realtime.logs import spelled
from realtime.loops import PerLoop
from realtime.topology import Server, topology

T = TypeVar("T")

_ERRORS: dict[str, type[RedisError]] = {
    "NOSCRIPT": exceptions.NoScriptError,
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
    "LOADING": exceptions.BusyLoadingError,
    "CLUSTERDOWN": exceptions.ClusterDownError,
    "TRYAGAIN": TryAgainError,
    "MOVED": MovedError,
    "ASK": AskError,
}
"""What a caller, or this connection, has to tell from other refusals by Redis."""

ATTEMPTS = 16
"""Servers that send a command on to each other do not agree (yet) who has its slot: it fails."""
TRY_AGAIN_SECONDS = 0.05
"""A slot moves; the keys of a command are partly here and partly there."""


@dataclass(slots=True)
class Command:
    """A command, and who waits for its answer."""

    packed: bytes
    future: asyncio.Future[Any]
    whole: Callable[[], bytes] | None = None
    """Of a script that is named by its hash: the same with the script itself."""
    attempts: int = 0


class Pipes:
    """A pipe to each server, made when something is sent to it."""

    def __init__(self) -> None:
        self._topology = topology()
        self._topology.on_change.add(self._follow)
        self._pipes: dict[Server, Pipe] = {}
        self.is_closed = False

    def __len__(self) -> int:
        """Commands without an answer yet."""
        return sum(map(len, self._pipes.values()))

    def to(self, key: str | bytes) -> Pipe:
        """The pipe to the server of a key or channel."""
        return self._at(self._topology.owner(key))

    def publish(self, channel: bytes, payload: bytes) -> asyncio.Future[Any]:
        """Send it to all that have subscribed to the channel."""
        return self.to(channel).send(self._topology.publish_command, channel, payload)

    async def listeners(self, channel: bytes) -> int:
        """How many connections have subscribed to a channel. Raises `redis.RedisError`."""
        count: int = (await self.to(channel).send("PUBSUB", self._topology.count_command, channel))[1]
        return count

    async def answer(self) -> None:
        """Return when all servers have answered. Raises `redis.RedisError`: one of them is away."""
        await asyncio.gather(*[self._at(server).send("PING") for server in self._topology.servers()])

    def flush(self) -> None:
        """Write what was sent now, not at the end of this turn of the loop."""
        for pipe in self._pipes.values():
            pipe.flush()

    def close(self) -> None:
        """Give the connections back; what has no answer yet fails, and so does what is sent from now on."""
        self.is_closed = True
        self._topology.on_change.discard(self._follow)
        for pipe in self._pipes.values():
            pipe.close()

    def _follow(self) -> None:
        """Servers may have left."""
        for server in self._pipes.keys() - self._topology.servers():
            if not self._pipes[server]:
                self._pipes.pop(server).close()

    def _at(self, server: Server) -> Pipe:
        pipe = self._pipes.get(server)
        if pipe is None:
            pipe = self._pipes[server] = Pipe(server, self._topology.refresh, self._redirect)
            if self.is_closed:
                pipe.close()
        return pipe

    def _redirect(self, error: AskError, command: Command) -> None:
        """A server that does not serve the key (any more) says which one does."""
        pipe = self._at((error.host, error.port))
        if not isinstance(error, MovedError):
            pipe.send("ASKING")
        pipe.resend(command)


pipes: PerLoop[Pipes] = PerLoop(Pipes, Pipes.close)
"""Those that all of an event loop share. A command that waits in Redis (BLOCK) needs `Pipes()` of its own."""


def _raise(error: AskError, command: Command) -> None:
    _refuse(command.future, error)


class Pipe:
    """Connects when something is sent.

    `on_trouble` is called when the server cannot be reached, does not answer or does not serve a key; `redirect` takes
    a command that belongs to another server.
    """

    def __init__(
        self,
        server: Server = None,
        on_trouble: Callable[[], None] = lambda: None,
        redirect: Callable[[AskError, Command], None] = _raise,
    ) -> None:
        self._server = server
        self._on_trouble = on_trouble
        self._redirect = redirect
        self._loop = asyncio.get_running_loop()
        self._link: _Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._unsent: list[Command] = []
        self._is_closed = False

    def __len__(self) -> int:
        """Commands without an answer yet."""
        return len(self._unsent) + (len(self._link.pending) if self._link else 0)

    def send(self, *command: Argument) -> asyncio.Future[Any]:
        """Send a command. The future has its answer, or a `redis.RedisError`: then it may have been done or not."""
        return self._send(pack(*command))

    def run(
        self, script: AsyncScript, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> asyncio.Future[Any]:
        """Send a Lua script by its hash; when Redis does not know it (any more), it is sent whole."""
        rest = (len(keys), *keys, *arguments)
        return self._send(pack("EVALSHA", script.sha, *rest), lambda: pack("EVAL", script.script, *rest))

    def _send(self, packed: bytes, whole: Callable[[], bytes] | None = None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self.resend(Command(packed, future, whole))
        return future

    def resend(self, command: Command) -> None:
        """Send a command that somebody waits for already."""
        if self._is_closed:
            _refuse(command.future, exceptions.ConnectionError("closed"))
        elif self._link is not None and self._link.is_open:
            self._link.send(command)
        else:
            self._unsent.append(command)
            if self._connecting is None or self._connecting.done():
                self._connecting = self._loop.create_task(self._connect(), name="pipe")

    def flush(self) -> None:
        """Write what was sent now, not at the end of this turn of the loop."""
        if self._link is not None:
            self._link.flush()

    def close(self) -> None:
        """Give the connection back; what has no answer yet fails, and so does what is sent from now on."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._fail(exceptions.ConnectionError("closed"))
        if self._link is not None:
            self._link.close()

    async def _connect(self) -> None:
        link = _Link(self._on_refusal, self._on_end)
        try:
            await link.open(self._server)
        except Exception as error:
            self._on_trouble()
            self._fail(error)
            return
        self._link = link
        unsent, self._unsent = self._unsent, []
        for command in unsent:
            link.send(command)

    def _fail(self, error: Exception) -> None:
        unsent, self._unsent = self._unsent, []
        for command in unsent:
            _refuse(command.future, error)

    def _on_end(self, unwritten: Sequence[Command]) -> None:
        """The connection was lost, and these had not been written yet."""
        if not self._is_closed:
            self._on_trouble()
        for command in unwritten:
            self._once_more(command, exceptions.ConnectionError("redis closed the connection"), self.resend)

    def _on_refusal(self, command: Command, error: RedisError) -> None:
        if isinstance(error, AskError | exceptions.ClusterDownError):
            self._on_trouble()
        if isinstance(error, MovedError) or (isinstance(error, AskError) and command.whole is None):
            self._once_more(command, error, lambda command: self._redirect(error, command))
        elif isinstance(error, exceptions.NoScriptError) and command.whole is not None:
            command.packed = command.whole()
            self._once_more(command, error, self.resend)
        elif isinstance(error, TryAgainError):
            self._once_more(
                command, error, lambda command: self._loop.call_later(TRY_AGAIN_SECONDS, self.resend, command)
            )
        else:
            _refuse(command.future, error)

    @staticmethod
    def _once_more(command: Command, error: RedisError, resend: Callable[[Command], object]) -> None:
        """Redis has not done it. When that has been so too often, it fails."""
        command.attempts += 1
        if command.attempts > ATTEMPTS:
            _refuse(command.future, error)
        else:
            resend(command)


class _Link(asyncio.Protocol):
    """One connection, from its beginning to its end."""

    def __init__(
        self,
        on_refusal: Callable[[Command, RedisError], None],
        on_end: Callable[[Sequence[Command]], None],
    ) -> None:
        self.pending: deque[Command] = deque()
        """What has been sent."""
        self._unwritten = 0
        """How many of them, from the end, have not been written."""
        self._on_refusal = on_refusal
        self._on_end = on_end
        self.is_open = False
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=_error)
        self._outgoing: list[bytes] = []
        self._liveness = Liveness(patience(), lambda: bool(self.pending) and self.is_open, self.close)

    async def open(self, server: Server) -> None:
        self._writer = await connect(self, server)
        self.is_open = not self._writer.transport.is_closing()

    def write(self, packed: bytes) -> None:
        if not self._outgoing:
            self._loop.call_soon(self.flush)
        self._outgoing.append(packed)

    def send(self, command: Command) -> None:
        self.write(command.packed)
        if not self.pending:
            self._liveness.watch()
        self.pending.append(command)
        self._unwritten += 1

    def close(self) -> None:
        self.is_open = False
        self._liveness.stop()
        self._writer.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._liveness.heard()
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            command = self.pending.popleft()
            if isinstance(answer, RedisError):
                self._refused(command, answer)
            elif not command.future.done():
                command.future.set_result(answer)

    def _refused(self, command: Command, error: RedisError) -> None:
        self._on_refusal(command, error)
        if isinstance(error, exceptions.ReadOnlyError | exceptions.BusyLoadingError):
            self.close()  # no longer, or not yet, the server that we want

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._liveness.stop()
        error = exceptions.ConnectionError(spelled(exc) if exc else "redis closed the connection")
        while len(self.pending) > self._unwritten:
            _refuse(self.pending.popleft().future, error)
        unwritten, self.pending = self.pending, deque()
        self._on_end(tuple(unwritten))

    def flush(self) -> None:
        if self._outgoing and self.is_open and not self._writer.transport.is_closing():
            outgoing, self._outgoing, self._unwritten = self._outgoing, [], 0
            self._writer.write(b"".join(outgoing))


def begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Do something whose failure is for who waits for it, if anybody still does."""
    task = asyncio.ensure_future(work)
    # Else asyncio logs that it was never retrieved.
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return task


def _error(text: str) -> RedisError:
    name, _, rest = text.partition(" ")
    kind = _ERRORS.get(name, exceptions.ResponseError)
    return kind(rest if issubclass(kind, AskError) else text)


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(
            error if isinstance(error, RedisError) else exceptions.ConnectionError(spelled(error))
        )
        future.exception()  # it may be that nobody waits any more
