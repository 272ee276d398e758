"""A connection to Redis that answers in order: commands go out together, nothing is ever tried twice.

For what is sent for every message. redis-py makes the connection (TLS, unix sockets, AUTH, SELECT); its way of
sending a command, made for comfort, costs several times what delivering a message costs.
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
from redis.exceptions import MovedError, RedisError

from realtime.cluster import shards
from realtime.location import Address
from realtime.logs import spelled
from realtime.redis import TIMEOUT, dedicated

T = TypeVar("T")

Argument = str | bytes | int | memoryview
Redirect = Callable[[MovedError, "Command"], None]

_ERRORS = {
    "NOSCRIPT": exceptions.NoScriptError,
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
    "LOADING": exceptions.BusyLoadingError,
}
"""What a caller, or this connection, has to tell from other refusals by Redis."""

_SKIP = b"CLIENT REPLY SKIP\r\n"
"""No answer to this, nor to what follows it."""

REDIRECTS = 5
"""Servers that send a command on to each other do not agree (yet) who has its slot: it fails."""


@dataclass(slots=True)
class Command:
    """A command, and who waits for its answer."""

    packed: bytes
    future: asyncio.Future[Any]
    sent_at: float = 0.0
    redirects: int = 0


async def connect(protocol: asyncio.Protocol, server: Address | None = None) -> asyncio.StreamWriter:
    """Let `protocol` have a connection to Redis: the answer's `transport`. The answer is to be kept as long.

    `server` says which one, if there are several.

    Raises `redis.RedisError` or `OSError`.
    """
    redis = dedicated(server)
    try:
        pool: Any = redis.connection_pool
        async with asyncio.timeout(TIMEOUT):  # also for the answers to HELLO and AUTH
            connection = await pool.get_connection()
    except BaseException:
        await redis.aclose()
        raise
    reader: asyncio.StreamReader = connection._reader
    writer: asyncio.StreamWriter = connection._writer
    connection._reader = connection._writer = None  # it is not redis-py's any more
    writer.transport.set_protocol(protocol)
    if reader.at_eof() or writer.is_closing():
        # Its end was told to redis-py's protocol, and will not be told again.
        writer.transport.abort()
        raise exceptions.ConnectionError("redis closed the connection")
    return writer


class Pipes:
    """A pipe to each server: always the same when Redis is one, in a Cluster that of the key or channel."""

    def __init__(self) -> None:
        self._shards = shards()
        self._only = Pipe()
        self._pipes: dict[Address, Pipe] = {}
        self.is_closed = False
        if self._shards is not None:
            self._shards.on_change.add(self._follow)
        self.publish_command = "PUBLISH" if self._shards is None else "SPUBLISH"
        self._count = "NUMSUB" if self._shards is None else "SHARDNUMSUB"

    def __len__(self) -> int:
        """Commands without an answer yet."""
        return len(self._only) + sum(map(len, self._pipes.values()))

    def to(self, key: str | bytes) -> Pipe:
        """The pipe to the server of a key or channel."""
        return self._only if self._shards is None else self._at(self._shards.owner(key))

    def publish(self, channel: bytes, payload: bytes) -> asyncio.Future[Any]:
        """Send it to whoever has subscribed to the channel."""
        return self.to(channel).send(self.publish_command, channel, payload)

    async def listeners(self, channel: bytes) -> int:
        """How many connections have subscribed to a channel. Raises `redis.RedisError`."""
        count: int = (await self.to(channel).send("PUBSUB", self._count, channel))[1]
        return count

    def flush(self) -> None:
        """Write what was sent now, not at the end of this turn of the loop."""
        for pipe in (self._only, *self._pipes.values()):
            pipe.flush()

    def close(self) -> None:
        """Give the connections back; what has no answer yet fails, and so does what is sent from now on."""
        self.is_closed = True
        if self._shards is not None:
            self._shards.on_change.discard(self._follow)
        for pipe in (self._only, *self._pipes.values()):
            pipe.close()

    def _follow(self) -> None:
        """Servers may have left."""
        assert self._shards is not None  # noqa: S101
        for server in self._pipes.keys() - self._shards.servers():
            if not self._pipes[server]:
                self._pipes.pop(server).close()

    def _at(self, server: Address) -> Pipe:
        assert self._shards is not None  # noqa: S101
        if server not in self._pipes:
            pipe = self._pipes[server] = Pipe(server, self._shards.refresh, self._redirect)
            if self.is_closed:
                pipe.close()
        return self._pipes[server]

    def _redirect(self, moved: MovedError, command: Command) -> None:
        """A server that does not serve the key (any more) has done nothing, and says who does."""
        self._at((moved.host, moved.port)).resend(command)


class Pipe:
    """Connects when something is sent. What is sent in one turn of the loop is one write.

    In a Cluster, `on_trouble` is called when the server cannot be reached, does not answer or redirects, and `redirect`
    takes what it redirected.
    """

    def __init__(
        self,
        server: Address | None = None,
        on_trouble: Callable[[], None] = lambda: None,
        redirect: Redirect | None = None,
    ) -> None:
        self._server = server
        self._on_trouble = on_trouble
        self._redirect = redirect
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: _Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._unsent: list[Command] = []
        self._is_closed = False

    def __len__(self) -> int:
        """Commands without an answer yet."""
        return len(self._unsent) + (len(self._link.pending) if self._link else 0)

    def send(self, *command: Argument) -> asyncio.Future[Any]:
        """Send a command. The future has its answer, or a `redis.RedisError`: then it may have been done or not."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = self._loop.create_future()
        arguments: Any = command
        self.resend(Command(hiredis.pack_command(arguments), future))
        return future

    def send_silently(self, *command: Argument) -> None:
        """Send a command that Redis does not answer, so that nobody is woken for it.

        Whether it was done has to be seen otherwise. Redis must have let us: `may_be_silent`.
        """
        if self._link is not None and self._link.is_open:
            arguments: Any = command
            self._link.write(_SKIP + hiredis.pack_command(arguments))

    async def may_be_silent(self) -> bool:
        """Whether Redis' ACL allows `send_silently`. Raises `redis.RedisError`."""
        try:
            await self.send("CLIENT", "REPLY", "ON")
        except exceptions.ResponseError:
            return False
        return True

    def resend(self, command: Command) -> None:
        """Send a command that somebody waits for already."""
        if self._is_closed:
            _refuse(command.future, exceptions.ConnectionError("closed"))
        elif self._link is not None and self._link.is_open:
            self._link.send(command)
        else:
            self._unsent.append(command)
            if self._connecting is None or self._connecting.done():
                self._connecting = asyncio.create_task(self._connect(), name="pipe")

    def flush(self) -> None:
        """Write what was sent now, not at the end of this turn of the loop."""
        if self._link is not None:
            self._link.flush()

    async def run(self, script: AsyncScript, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run a Lua script; when Redis does not know it (any more), send it whole. Raises `redis.RedisError`."""
        try:
            return await self.send("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except exceptions.NoScriptError:
            return await self.send("EVAL", script.script, len(keys), *keys, *arguments)

    def close(self) -> None:
        """Give the connection back; what has no answer yet fails, and so does what is sent from now on."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            self._link.close()
        self._fail(exceptions.ConnectionError("closed"))

    async def _connect(self) -> None:
        link = _Link(self._on_trouble, self._redirect)
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


class _Link(asyncio.Protocol):
    """One connection, from its beginning to its end."""

    def __init__(self, on_trouble: Callable[[], None], redirect: Redirect | None) -> None:
        self.pending: deque[Command] = deque()
        """What has been sent."""
        self._on_trouble = on_trouble
        self._redirect = redirect
        self.is_open = False
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=_error)
        self._outgoing: list[bytes] = []
        self._watching = False

    async def open(self, server: Address | None) -> None:
        self._writer = await connect(self, server)
        self.is_open = not self._writer.transport.is_closing()

    def write(self, packed: bytes) -> None:
        if not self._outgoing:
            self._loop.call_soon(self.flush)
        self._outgoing.append(packed)

    def send(self, command: Command) -> None:
        self.write(command.packed)
        self.pending.append(command)
        command.sent_at = self._loop.time()
        if self._redirect is None:
            command.packed = b""  # it is never sent again
        if not self._watching:
            self._watching = True
            self._loop.call_later(TIMEOUT, self._watch)

    def close(self) -> None:
        self.is_open = False
        self._writer.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            command = self.pending.popleft()
            if isinstance(answer, RedisError):
                self._refused(command, answer)
            elif not command.future.done():
                command.future.set_result(answer)

    def _refused(self, command: Command, error: RedisError) -> None:
        if isinstance(error, MovedError) and self._redirect is not None:
            self._on_trouble()
            if command.redirects < REDIRECTS:
                command.redirects += 1
                self._redirect(error, command)
                return
        _refuse(command.future, error)
        if isinstance(error, exceptions.ReadOnlyError | exceptions.BusyLoadingError):
            self._on_trouble()
            self.close()  # no longer, or not yet, the server that we want

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_open:
            self._on_trouble()
        self.is_open = False
        error = exceptions.ConnectionError(spelled(exc) if exc else "redis closed the connection")
        while self.pending:
            _refuse(self.pending.popleft().future, error)

    def flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self.is_open and not self._writer.transport.is_closing():
            self._writer.write(b"".join(outgoing))

    def _watch(self) -> None:
        """One timer for all that is on its way, not one each."""
        self._watching = False
        if not self.pending or not self.is_open:
            return
        left = self.pending[0].sent_at + TIMEOUT - self._loop.time()
        if left <= 0:
            self._on_trouble()
            self.close()
        else:
            self._watching = True
            self._loop.call_later(left, self._watch)


def begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Do something whose failure is for who waits for it, if anybody still does."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_look_at)
    return task


def _look_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # else asyncio says that nobody did


def _error(text: str) -> RedisError:
    name, _, rest = text.partition(" ")
    if name == "MOVED":
        return MovedError(rest)
    return _ERRORS.get(name, exceptions.ResponseError)(text)


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(
            error if isinstance(error, RedisError) else exceptions.ConnectionError(spelled(error))
        )
        future.exception()  # it may be that nobody waits any more
