"""A connection to Redis that answers in order: commands go out together, nothing is ever tried twice.

For what is sent for every message. redis-py makes the connection (TLS, unix sockets, AUTH, SELECT); its way of
sending a command, made for comfort, costs several times what delivering a message costs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import hiredis
from redis import exceptions
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from realtime.redis import TIMEOUT, dedicated

Argument = str | bytes | int | memoryview

_ERRORS = {
    "NOSCRIPT": exceptions.NoScriptError,
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
    "LOADING": exceptions.BusyLoadingError,
}
"""What a caller, or this connection, has to tell from other refusals by Redis."""


async def connect(protocol: asyncio.Protocol) -> asyncio.StreamWriter:
    """Let `protocol` have a connection to Redis: the answer's `transport`. The answer is to be kept as long.

    Raises `redis.RedisError` or `OSError`.
    """
    redis = dedicated()
    try:
        pool: Any = redis.connection_pool
        connection = pool.make_connection()
        async with asyncio.timeout(TIMEOUT):  # also for the answers to HELLO and AUTH
            await connection.connect()
        reader: asyncio.StreamReader = connection._reader
        writer: asyncio.StreamWriter = connection._writer
        connection._reader = connection._writer = None  # it is not redis-py's any more
        writer.transport.set_protocol(protocol)
        if reader.at_eof() or writer.is_closing():
            # Its end was told to redis-py's protocol, and will not be told again.
            writer.transport.abort()
            raise exceptions.ConnectionError("redis closed the connection")
        return writer
    finally:
        await redis.aclose()


class Pipe:
    """Connects when something is sent. What is sent in one turn of the loop is one write."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: _Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._unsent: list[tuple[bytes, asyncio.Future[Any]]] = []

    def __len__(self) -> int:
        """Commands without an answer yet."""
        return len(self._unsent) + (len(self._link.pending) if self._link else 0)

    def send(self, *command: Argument) -> asyncio.Future[Any]:
        """Send a command. The future has its answer, or a `redis.RedisError`: then it may have been done or not."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = self._loop.create_future()
        arguments: Any = command
        packed = hiredis.pack_command(arguments)
        if self._link is not None and self._link.is_open:
            self._link.send(packed, future)
        else:
            self._unsent.append((packed, future))
            if self._connecting is None or self._connecting.done():
                self._connecting = asyncio.create_task(self._connect(), name="pipe")
        return future

    def flush(self) -> None:
        """Write what was sent now, not at the end of this turn of the loop."""
        if self._link is not None:
            self._link.flush()

    async def run(self, script: AsyncScript, keys: list[str], arguments: list[Argument]) -> Any:
        """Run a Lua script; when Redis does not know it (any more), send it whole. Raises `redis.RedisError`."""
        try:
            return await self.send("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except exceptions.NoScriptError:
            return await self.send("EVAL", script.script, len(keys), *keys, *arguments)

    def close(self) -> None:
        """Give the connection back; what has no answer yet fails."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            self._link.close()
        self._fail(exceptions.ConnectionError("closed"))

    async def _connect(self) -> None:
        link = _Link()
        try:
            await link.open()
        except Exception as error:
            self._fail(error)
            return
        self._link = link
        unsent, self._unsent = self._unsent, []
        for packed, future in unsent:
            link.send(packed, future)

    def _fail(self, error: Exception) -> None:
        unsent, self._unsent = self._unsent, []
        for _, future in unsent:
            _refuse(future, error)


class _Link(asyncio.Protocol):
    """One connection, from its beginning to its end."""

    def __init__(self) -> None:
        self.pending: deque[tuple[asyncio.Future[Any], float]] = deque()
        """What has been sent, and when."""
        self.is_open = False
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=_error)
        self._outgoing: list[bytes] = []
        self._watching = False

    async def open(self) -> None:
        self._writer = await connect(self)
        self.is_open = not self._writer.transport.is_closing()

    def send(self, packed: bytes, future: asyncio.Future[Any]) -> None:
        if not self._outgoing:
            self._loop.call_soon(self.flush)
        self._outgoing.append(packed)
        self.pending.append((future, self._loop.time()))
        if not self._watching:
            self._watching = True
            self._loop.call_later(TIMEOUT, self._watch)

    def close(self) -> None:
        self.is_open = False
        self._writer.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            future, _ = self.pending.popleft()
            if isinstance(answer, RedisError):
                _refuse(future, answer)
                if isinstance(answer, exceptions.ReadOnlyError | exceptions.BusyLoadingError):
                    self.close()  # no longer, or not yet, the server that we want
            elif not future.done():
                future.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        error = exceptions.ConnectionError(repr(exc) if exc else "redis closed the connection")
        while self.pending:
            _refuse(self.pending.popleft()[0], error)

    def flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self.is_open and not self._writer.transport.is_closing():
            self._writer.write(b"".join(outgoing))

    def _watch(self) -> None:
        """One timer for all that is on its way, not one each."""
        self._watching = False
        if not self.pending or not self.is_open:
            return
        left = self.pending[0][1] + TIMEOUT - self._loop.time()
        if left <= 0:
            self.close()
        else:
            self._watching = True
            self._loop.call_later(left, self._watch)


def _error(text: str) -> RedisError:
    kind = _ERRORS.get(text.partition(" ")[0], exceptions.ResponseError)
    return kind(text)


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(
            error if isinstance(error, RedisError) else exceptions.ConnectionError(repr(error))
        )
        future.exception()  # it may be that nobody waits any more
