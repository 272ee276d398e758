"""Redis: one client per event loop, bounded, with time-outs and retries of our own choosing, and key names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import redis
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import FullJitterBackoff
from redis.commands.core import AsyncScript, Script
from redis.retry import Retry

from realtime.conf import conf
from realtime.location import Location, parse

# redis-py's own defaults changed between majors (pool of 100 that raises, 5 s socket timeout): say what we mean.
TIMEOUT = 5.0
POOL = 32
_BACKOFF = FullJitterBackoff(cap=0.5, base=0.05)

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, aioredis.Redis] = WeakKeyDictionary()


def location() -> Location:
    """Where Redis is."""
    return parse(conf().redis_url)


def client() -> aioredis.Redis:
    """The asyncio client of the running loop. Waits for a free connection rather than opening ever more."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        arguments: Any = {"socket_keepalive": True, **location().arguments()}
        if "path" in arguments:
            del arguments["socket_keepalive"]  # a unix socket has none
        _clients[loop] = aioredis.Redis(
            connection_pool=aioredis.BlockingConnectionPool(
                max_connections=POOL,
                timeout=TIMEOUT,
                socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT,
                retry=AsyncRetry(_BACKOFF, 1),
                health_check_interval=15,
                **arguments,
            )
        )
    return _clients[loop]


def dedicated(*, timeout: float | None = None) -> aioredis.Redis:
    """A client of its own for a blocking reader; `timeout` bounds a read in seconds. The caller closes it."""
    return aioredis.Redis.from_pool(
        aioredis.ConnectionPool(
            socket_timeout=timeout,
            socket_connect_timeout=TIMEOUT,
            max_connections=2,
            retry=AsyncRetry(_BACKOFF, 0),
            **location().arguments(),
        )
    )


def sync_client() -> redis.Redis:
    """A client for synchronous code (the web side), from a pool that all threads of the process share."""
    global _sync
    if _sync is None or _sync[0] != conf().redis_url:
        pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
            max_connections=POOL,
            timeout=TIMEOUT,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(_BACKOFF, 1),
            health_check_interval=15,
            **location().sync_arguments(),
        )
        _sync = (conf().redis_url, redis.Redis(connection_pool=pool))
    return _sync[1]


_sync: tuple[str, redis.Redis] | None = None


def is_cancelled() -> bool:
    """Whether the running task was asked to end; a loop around Redis calls has to look.

    Before Python 3.12 `asyncio.wait_for`, with which redis-py sends, can swallow a cancellation
    (https://github.com/python/cpython/issues/86296).
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def key(*parts: str) -> str:
    """`key("dead")` -> `realtime:dead`: every key and channel starts with the prefix of the installation."""
    return ":".join((conf().prefix, *parts))


def script(path: Path) -> AsyncScript:
    """The Lua script of a file, for `await script(...)(keys=…, args=…, client=client())`.

    Called by its hash; when Redis lost it (restart, SCRIPT FLUSH) it is sent again.
    """
    return AsyncScript(aioredis.Redis(), path.read_bytes())


def sync_script(path: Path) -> Script:
    """The same for synchronous code."""
    return Script(redis.Redis(), path.read_bytes())
