"""A bare connection to Redis: redis-py makes it (TLS, unix sockets, AUTH, SELECT), a protocol of ours uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
from redis import asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from realtime.conf import conf
from realtime.location import Address, Location, parse

TIMEOUT = 5.0
"""Seconds that Redis may take to accept a connection, or to say anything when something is asked of it.

`socket_connect_timeout` and `socket_timeout` in `REDIS_URL` override it.
"""
TICKS = 4
"""Looks at a connection per time-out."""

Argument = str | bytes | int | float | memoryview


def pack(*command: Argument) -> bytes:
    """A command as it is written to Redis."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


def make_connection(location: Location, server: Address | None, timeout: float | None) -> Any:
    """A connection of redis-py's that belongs to no pool, not connected yet. `server` is for a Cluster.

    No client: one closes its connection in a task of its own, which may never get to run.
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
    """Let `protocol` have a connection to Redis: the answer's `transport`. The answer is to be kept as long.

    `server` says which one, if there are several.

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
    reader: asyncio.StreamReader = connection._reader
    writer: asyncio.StreamWriter = connection._writer
    connection._reader = connection._writer = None  # it is not redis-py's any more
    writer.transport.set_protocol(protocol)
    if reader.at_eof() or writer.is_closing():
        # Its end was told to redis-py's protocol, and will not be told again.
        writer.transport.abort()
        raise exceptions.ConnectionError("redis closed the connection")
    return writer


class Liveness:
    """Judges whether Redis is still there at the other end of a connection.

    It looks at the connection `TICKS` times per time-out, and calls `on_dead` after more than that many looks in a row
    at which an answer was due (`is_due`, which may ask for one) and nothing had been heard since the look before.
    Between two looks the loop reads at least once. A look that comes late starts the judgement anew: the loop was
    blocked, or the process suspended, so a connection is never found dead while this process did not read from it.
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
        """Begin to look. It ends by itself when no answer is due any more."""
        if self._timer is None:
            self._silent = 0
            self._schedule()

    def heard(self) -> None:
        """Something has come."""
        self._silent = 0

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._look_at = self._loop.time() + self._interval
        self._timer = self._loop.call_at(self._look_at, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._is_due():
            return
        is_late = self._loop.time() - self._look_at > self._interval / 2
        self._silent = 0 if is_late else self._silent + 1
        if self._silent > TICKS:
            self._on_dead()
        else:
            self._schedule()
