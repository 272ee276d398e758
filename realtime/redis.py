"""Redis: one client per event loop, bounded, with time-outs and retries of our own choosing, and key names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import redis
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import FullJitterBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError
from redis.retry import Retry

from realtime import cluster
from realtime.cluster import slot
from realtime.conf import conf
from realtime.location import Address, Location, parse

# redis-py's own defaults changed between majors (pool of 100 that raises, 5 s socket timeout): say what we mean.
TIMEOUT = 5.0
POOL = 32
_BACKOFF = FullJitterBackoff(cap=0.5, base=0.05)
_OPTIONS: Any = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "health_check_interval": 15}

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, aioredis.Redis] = WeakKeyDictionary()


def location() -> Location:
    """Where Redis is."""
    return parse(conf().redis_url)


def client() -> aioredis.Redis:
    """The asyncio client of the running loop. Waits for a free connection rather than opening ever more."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = cluster.client(location(), **_OPTIONS) if location().nodes else _one_server()
    return _clients[loop]


def _one_server() -> aioredis.Redis:
    arguments: Any = {**_OPTIONS, "socket_keepalive": True, **location().arguments()}
    if "path" in arguments:
        del arguments["socket_keepalive"]  # a unix socket has none
    pool = aioredis.BlockingConnectionPool(
        max_connections=POOL, timeout=TIMEOUT, retry=AsyncRetry(_BACKOFF, 1), **arguments
    )
    return aioredis.Redis(connection_pool=pool)


async def close() -> None:
    """Give back what `client` took."""
    if (taken := _clients.pop(asyncio.get_running_loop(), None)) is not None:
        await taken.aclose(**({} if location().nodes else {"close_connection_pool": True}))


def dedicated(address: Address | None = None) -> aioredis.Redis:
    """A client of its own for a blocking reader; in a Cluster for the server at `address`. The caller closes it."""
    arguments = location().arguments()
    if address is not None:
        arguments["host"], arguments["port"] = address
    return aioredis.Redis.from_pool(
        aioredis.ConnectionPool(
            socket_timeout=None,
            socket_connect_timeout=TIMEOUT,
            max_connections=2,
            retry=AsyncRetry(_BACKOFF, 0),
            **arguments,
        )
    )


def sync_client() -> redis.Redis:
    """A client for synchronous code (the web side), from a pool that all threads of the process share."""
    global _sync
    if _sync is None or _sync[0] != conf().redis_url:
        if location().nodes:
            _sync = (conf().redis_url, cluster.sync_client(location(), **_OPTIONS))
        else:
            arguments: Any = {**_OPTIONS, **location().sync_arguments()}
            pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
                max_connections=POOL, timeout=TIMEOUT, retry=Retry(_BACKOFF, 1), **arguments
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


def script(source: Path | bytes) -> AsyncScript:
    """A Lua script, or that of a file, for `run`."""
    return AsyncScript(aioredis.Redis(), source if isinstance(source, bytes) else source.read_bytes())


async def run(script: AsyncScript, keys: Sequence[str], arguments: Sequence[Any] = ()) -> Any:
    """Run a Lua script by its hash; one that Redis does not know (any more) is sent again. Raises `redis.RedisError`.

    In a Cluster all keys must have one slot (`batches`).
    """
    try:
        return await client().evalsha(script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return await client().eval(script.script, len(keys), *keys, *arguments)  # type: ignore[arg-type]


def run_sync(script: AsyncScript, keys: Sequence[str], arguments: Sequence[Any] = ()) -> Any:
    """The same from synchronous code."""
    try:
        return sync_client().evalsha(script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return sync_client().eval(script.script, len(keys), *keys, *arguments)  # type: ignore[arg-type]


def batches(keys: Sequence[str]) -> list[list[int]]:
    """Which keys may go into one command, as indexes: with one server all of them, in a Cluster those of a slot."""
    if not location().nodes:
        return [list(range(len(keys)))]
    slots: dict[int, list[int]] = {}
    for number, name in enumerate(keys):
        slots.setdefault(slot(name), []).append(number)
    return list(slots.values())


async def in_batches(
    keys: Sequence[str], ask: Callable[[Sequence[int]], Awaitable[Sequence[Any]]]
) -> list[Any]:
    """One answer a key, asked for batch by batch, all at once. Raises what the first batch raised that failed."""
    parts = batches(keys)
    if len(parts) == 1:
        return list(await ask(parts[0]))
    found = await asyncio.gather(*[ask(part) for part in parts], return_exceptions=True)
    answers: list[Any] = [None] * len(keys)
    for part, answer in zip(parts, found, strict=True):
        if isinstance(answer, BaseException):
            raise answer
        for number, value in zip(part, answer, strict=True):
            answers[number] = value
    return answers


async def mget(keys: Sequence[str]) -> list[Any]:
    """MGET, whichever slots the keys have. Raises `redis.RedisError`."""
    return await in_batches(keys, lambda part: client().mget([keys[number] for number in part]))
