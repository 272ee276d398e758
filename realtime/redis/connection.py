"""A bare connection to Redis: redis-py makes it (TLS, unix sockets, AUTH, SELECT), a `Session` of ours uses it."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import hiredis
from redis import asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from realtime.conf import conf
from realtime.redis.url import Address, Location, parse
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

TIMEOUT = 5.0
"""Seconds that Redis may take to accept a connection, or to say anything when something is asked of it.

`socket_connect_timeout` and `socket_timeout` in `REDIS_URL` override it.
"""
TICKS = 4
"""How often a connection is checked per time-out."""

Argument = str | bytes | int | float | memoryview

_ERRORS: dict[str, type[RedisError]] = {
    "NOSCRIPT": exceptions.NoScriptError,
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
    "LOADING": exceptions.BusyLoadingError,
    "CLUSTERDOWN": exceptions.ClusterDownError,
    "TRYAGAIN": exceptions.TryAgainError,
    "MOVED": exceptions.MovedError,
    "ASK": exceptions.AskError,
}
"""Errors that a caller, or a connection, has to distinguish from other refusals by Redis."""


def pack(*command: Argument) -> bytes:
    """A command as it is written to Redis."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


def make_connection(location: Location, server: Address | None, timeout: float | None) -> Any:
    """A connection of redis-py's that belongs to no pool, not connected yet. `server` is for a Cluster.

    It is not redis-py's client, which closes its connection in a task of its own that may never run.
    """
    arguments = {"socket_connect_timeout": TIMEOUT, **location.arguments(), "socket_timeout": timeout}
    if timeout is not None:
        arguments["socket_connect_timeout"] = timeout
    if server is not None:
        arguments["host"], arguments["port"] = server
    pool: Any = aioredis.ConnectionPool(retry=Retry(NoBackoff(), 0), **arguments)
    return pool.make_connection()


def patience() -> float:
    """Seconds that Redis may take to say anything when something is asked of it: `socket_timeout`, or `TIMEOUT`."""
    return float(parse(conf().redis_url).arguments().get("socket_timeout", TIMEOUT))


async def connect(protocol: asyncio.Protocol, server: Address | None = None) -> asyncio.StreamWriter:
    """Open a connection to Redis and let `protocol` receive from it. Keep the returned writer while it is in use.

    `server` says to which server, if there are several.

    Raises `redis.RedisError` or `OSError`.
    """
    connection = make_connection(parse(conf().redis_url), server, None)
    try:
        async with asyncio.timeout(
            connection.socket_connect_timeout
        ):  # also for the answers to HELLO and AUTH
            await connection.connect()
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    # redis-py has no public way to hand over a connection that it has opened.
    reader: asyncio.StreamReader = connection._reader  # noqa: SLF001
    writer: asyncio.StreamWriter = connection._writer  # noqa: SLF001
    connection._reader = connection._writer = None  # noqa: SLF001
    writer.transport.set_protocol(protocol)
    if reader.at_eof() or writer.is_closing():
        # redis-py's protocol was notified of the end, and ours will not be.
        writer.transport.abort()
        raise exceptions.ConnectionError("redis closed the connection")
    return writer


class Liveness:
    """Finds out whether Redis still answers at the other end of a connection.

    It checks the connection `TICKS` times per time-out, and calls `on_dead` after more than that many checks in a row
    at which an answer was due (`is_due`, which may ask for one) and nothing had arrived since the check before. Between
    two checks the loop reads at least once. A check that comes late starts the count anew: the loop was blocked, or the
    process suspended, so a connection is never found dead while this process did not read from it.
    """

    def __init__(self, timeout: float, is_due: Callable[[], bool], on_dead: Callable[[], None]) -> None:
        self._interval = timeout / TICKS
        self._is_due = is_due
        self._on_dead = on_dead
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = 0.0
        self._silent = 0

    def watch(self) -> None:
        """Begin to check. This ends by itself when no answer is due any more."""
        if self._timer is None:
            self._silent = 0
            self._schedule()

    def heard(self) -> None:
        """Something has arrived."""
        self._silent = 0

    def stop(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._look_at = self._loop.time() + self._interval
        self._timer = self._loop.call_at(self._look_at, self._look)

    def _look(self) -> None:
        is_due = self._is_due()  # it may write, so `watch` is called in it
        self._timer = None
        if not is_due:
            return
        is_late = self._loop.time() - self._look_at > self._interval / 2
        self._silent = 0 if is_late else self._silent + 1
        if self._silent > TICKS:
            self._on_dead()
        else:
            self._schedule()


class Session(asyncio.Protocol, ABC):
    """Talks to one server, over one connection at a time, which is opened when there is something to send.

    Everything that is sent in one turn of the loop is one write. `on_trouble` is called when the server cannot be
    reached or its connection has ended. A connection is dead after `timeout` seconds without an answer while one was
    due (`Liveness`).
    """

    name: str
    """For logs."""

    def __init__(
        self,
        server: Address | None,
        on_trouble: Callable[[], None],
        timeout: float,
        is_due: Callable[[], bool],
    ) -> None:
        self._server = server
        self._on_trouble = on_trouble
        self._liveness = Liveness(timeout, is_due, self._on_dead)
        self._loop = asyncio.get_running_loop()
        self._connecting: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        """Of the open connection."""
        self._opened_at = 0.0
        self._is_scheduled = False
        self._is_closed = False

    @abstractmethod
    def outgoing(self) -> bytes:
        """Return everything that waits to be sent: it is written now."""

    @abstractmethod
    def on_replies(self, next_reply: Callable[[], Any]) -> None:
        """Take what has arrived: `next_reply()` until that is False. An exception ends the connection."""

    @abstractmethod
    def on_failure(self, error: BaseException, lasted: float | None) -> None:
        """A connection has ended after `lasted` seconds; None: it could not be opened."""

    async def pause(self) -> None:
        """Wait before an attempt to connect."""

    def schedule(self) -> None:
        """Send what waits at the end of this turn of the loop, or once there is a connection."""
        if self._writer is not None:
            if not self._is_scheduled:
                self._is_scheduled = True
                self._loop.call_soon(self.flush)
        elif self._connecting is None and not self._is_closed:
            self._connecting = self._loop.create_task(self._connect(), name=self.name)

    def flush(self) -> None:
        """Send what waits now."""
        self._is_scheduled = False
        if self._writer is None or self._writer.transport.is_closing():
            return  # it goes over the next one
        if data := self.outgoing():
            self._writer.transport.write(data)
            self._liveness.watch()

    def close(self) -> None:
        """Close the connection; no callback is called any more."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._drop()

    async def _connect(self) -> None:
        try:
            await self.pause()
            self._writer = await connect(self, self._server)
        except Exception as error:
            self._connecting = None
            self._failed(error, None)
        else:
            self._connecting = None
            self._opened_at = self._loop.time()
            self._reader = hiredis.Reader(replyError=_error)
            self.flush()

    def data_received(self, data: bytes) -> None:
        if self._writer is None:
            return
        self._liveness.heard()
        self._reader.feed(data)
        try:
            self.on_replies(self._reader.gets)
        except Exception as error:
            self.end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(exc or exceptions.ConnectionError("redis closed the connection"))

    def _on_dead(self) -> None:
        logger.warning("redis does not answer", extra={"connection": self.name})
        self.end(exceptions.ConnectionError("redis does not answer"))

    def end(self, error: BaseException) -> None:
        """Give up the connection because of an error."""
        if self._writer is not None:
            self._drop()
            self._failed(error, self._loop.time() - self._opened_at)

    def _drop(self) -> None:
        self._liveness.stop()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.transport.set_protocol(asyncio.Protocol())  # its end is not that of the next one
            writer.transport.abort()

    def _failed(self, error: BaseException, lasted: float | None) -> None:
        if not isinstance(error, RedisError | OSError):
            logger.error("redis connection failed", exc_info=error, extra={"connection": self.name})
        self._on_trouble()
        self.on_failure(error, lasted)


def _error(text: str) -> RedisError:
    name, _, rest = text.partition(" ")
    kind = _ERRORS.get(name, exceptions.ResponseError)
    return kind(rest if issubclass(kind, exceptions.AskError) else text)


def is_refusal(error: BaseException) -> bool:
    """Whether Redis would refuse this command at any time, not because of the state that it is in."""
    code = str(error).partition(" ")[0]
    return type(error) is exceptions.ResponseError and (not code.isupper() or code in {"ERR", "WRONGTYPE"})


def refuse(future: asyncio.Future[Any], error: BaseException) -> None:
    """Let a future fail with a `redis.RedisError`, unless it is done."""
    if not future.done():
        failure = error if isinstance(error, RedisError) else exceptions.ConnectionError(spelled(error))
        future.set_exception(failure)
        future.exception()  # else asyncio logs it when nothing waits for the future
