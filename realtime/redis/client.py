"""Commands of the hot path (`execute`, `run`, `mget`), redis-py's clients for everything else, and key names."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import redis
from django.core.exceptions import ImproperlyConfigured
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import FullJitterBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import AskError, NoScriptError, ReadOnlyError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from realtime.conf import cached, conf
from realtime.redis import cluster
from realtime.redis.connection import TIMEOUT, Argument
from realtime.redis.pipelining import pipes
from realtime.redis.topology import topologies, topology
from realtime.redis.url import Location, parse
from realtime.tasks.per_loop import PerLoop

# redis-py's defaults changed between major versions (a pool of 100 that raises, a socket timeout of 5 s).
POOL = 32
_BACKOFF = FullJitterBackoff(cap=0.5, base=0.05)
SOCKET_OPTIONS: Any = {
    "socket_timeout": TIMEOUT,
    "socket_connect_timeout": TIMEOUT,
    "health_check_interval": 15,
}
"""For redis-py's connections; `REDIS_URL` may say otherwise."""
_POOL_OPTIONS: Any = {
    "max_connections": POOL,
    "timeout": TIMEOUT,
    "retry_on_error": [RedisConnectionError, RedisTimeoutError],  # redis-py 5 tries nothing again without it
}


def location() -> Location:
    """The parsed `REDIS_URL`. Raises `ImproperlyConfigured` for one that cannot be used."""
    try:
        return parse(conf().redis_url)
    except ValueError as error:  # whose text never holds a password
        raise ImproperlyConfigured(f"REDIS_URL cannot be used: {error}") from None


def client() -> aioredis.Redis:
    """redis-py's client of the running loop. It waits for a free connection rather than opening more than `POOL`."""
    return _clients()


def _client() -> aioredis.Redis:
    return cluster.client(location(), **SOCKET_OPTIONS) if location().nodes else _one_server()


def _one_server() -> aioredis.Redis:
    arguments: Any = {**SOCKET_OPTIONS, "socket_keepalive": True, **location().arguments()}
    if "path" in arguments:
        del arguments["socket_keepalive"]  # a unix socket has none
    pool = aioredis.BlockingConnectionPool(
        **{**_POOL_OPTIONS, **location().pool_arguments()}, retry=AsyncRetry(_BACKOFF, 1), **arguments
    )
    return aioredis.Redis.from_pool(pool)


async def close() -> None:
    """Close the connections of the running loop."""
    pipes.end()
    topologies.end()
    if (taken := _clients.pop()) is not None:
        await taken.aclose()


def _drop(taken: Any) -> None:
    """`close` for a loop that has ended, in which nothing waits any more: redis-py has no such function."""
    if isinstance(taken, aioredis.Redis):
        pool: Any = taken.connection_pool
        connections = [*pool._available_connections, *pool._in_use_connections]  # noqa: SLF001
    else:
        taken._initialize = True  # noqa: SLF001
        connections = [each for node in taken.get_nodes() for each in node._connections]  # noqa: SLF001
    for connection in connections:
        writer, connection._reader, connection._writer = connection._writer, None, None  # noqa: SLF001
        if writer is not None:
            with contextlib.suppress(RuntimeError):  # of a loop that is closed already
                writer.transport.abort()


_clients: PerLoop[aioredis.Redis] = PerLoop(_client, _drop)


def _disconnect(client: Any) -> None:
    if (pool := getattr(client, "connection_pool", None)) is not None:
        pool.disconnect()
    else:
        client.close()


@cached(drop=_disconnect)
def sync_client() -> redis.Redis:
    """A client for synchronous code (the web side), from a pool that all threads of the process share."""
    if location().nodes:
        return cluster.sync_client(location(), **SOCKET_OPTIONS)
    arguments: Any = {**SOCKET_OPTIONS, **location().sync_arguments()}
    pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
        **{**_POOL_OPTIONS, **location().pool_arguments()}, retry=Retry(_BACKOFF, 1), **arguments
    )
    return redis.Redis(connection_pool=pool)


def is_cancelled() -> bool:
    """Whether the running task was asked to end; a loop around Redis calls has to check it.

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


async def execute(*command: Argument, at: str | bytes | None = None) -> Any:
    """Send one command over the loop's pipes, to the server of its key: the first argument, or `at`.

    This is the only retry rule, also for `run` and `mget`: when the connection was lost, or the server is not the
    primary any more, the command is sent once more. It may then be done twice, so that has to be harmless. `Pipes`
    themselves send nothing twice.

    Raises `redis.RedisError`.
    """
    where: Any = command[1] if at is None else at
    try:
        return await pipes().to(where).send(*command)
    except _AGAIN:
        await _pause()
    return await pipes().to(where).send(*command)


async def run(script: AsyncScript, keys: Sequence[str], arguments: Sequence[Any] = ()) -> Any:
    """Run a Lua script by its hash; a script that Redis does not know is sent whole. Raises `redis.RedisError`.

    In a Cluster all keys must be of one batch (`Topology.batches`), and real ones: while a slot moves, a key that is
    not at its old server is looked for at the new one. As with `execute`, the script may be run twice.
    """
    where = keys[0] if keys else ""
    try:
        return await pipes().to(where).run(script, keys, arguments)
    except _AGAIN:
        await _pause()
    except AskError:
        return await client().eval(script.script, len(keys), *keys, *arguments)  # type: ignore[arg-type]
    return await pipes().to(where).run(script, keys, arguments)


_AGAIN = (RedisConnectionError, ReadOnlyError)


async def _pause() -> None:
    """Wait a random time: many connections lose Redis together, and should not come back together."""
    await asyncio.sleep(random.uniform(0.01, 0.1))  # noqa: S311


def run_sync(script: AsyncScript, keys: Sequence[str], arguments: Sequence[Any] = ()) -> Any:
    """`run` from synchronous code."""
    try:
        return sync_client().evalsha(script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return sync_client().eval(script.script, len(keys), *keys, *arguments)  # type: ignore[arg-type]


def time_sync() -> float:
    """Redis' clock in seconds, from synchronous code; in a Cluster that of the server which has the stream."""
    client: Any = sync_client()
    where = {"target_nodes": client.get_node_from_key(key("stream"))} if location().nodes else {}
    seconds, microseconds = client.execute_command("TIME", **where)
    return float(seconds) + float(microseconds) / 1e6


def publish_sync(channel: str | bytes, payload: bytes) -> int:
    """Publish from synchronous code, over connections that all threads share. Raises `redis.RedisError`.

    Returns how many connections it reached, as far as one server of a Cluster can tell.
    """
    publish: Any = sync_client().execute_command
    return int(publish(topology().publish_command, channel, payload))


async def in_batches(
    keys: Sequence[str], ask: Callable[[Sequence[int]], Awaitable[Sequence[Any]]]
) -> list[Any]:
    """Return one answer per key, asked for in batches, all at once. Raises what the first failed batch raised."""
    parts = topology().batches(keys)
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
    """MGET, also of keys on different servers. Raises `redis.RedisError`."""
    return await in_batches(keys, lambda part: execute("MGET", *[keys[number] for number in part]))
