"""Redis Cluster: which server serves which slot, and redis-py's clients for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import redis
from redis import asyncio as aioredis
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.cluster import ClusterPipeline as AsyncClusterPipeline
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError

from realtime.conf import conf
from realtime.location import Address, Location, parse

logger = logging.getLogger(__name__)

_FAILURES = (RedisClusterException, AttributeError, RuntimeError, LookupError)
"""Also what redis-py and uvloop raise for a connection closed under a command, and for a slot without a server."""

ASK_TIMEOUT = 1.0
"""Seconds to wait for one server before another one is asked how the Cluster looks."""
PAUSE = 0.1
"""Between two questions."""
CONNECTIONS = 1000
"""Connections to a server; a command beyond it fails."""


@lru_cache(maxsize=65536)
def slot(key: str | bytes) -> int:
    """The slot of a key or channel."""
    return key_slot(key.encode() if isinstance(key, str) else key)


class Shards:
    """Which server serves what, as seen by one event loop."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._owners: list[Address] = []
        self._looking: asyncio.Task[None] | None = None
        self._known = asyncio.Event()
        self.on_change: set[Callable[[], None]] = set()
        self.on_arrival: set[Callable[[], None]] = set()
        """Called when a server serves something that served nothing before: a replica that took over, perhaps."""

    def owner(self, key: str | bytes) -> Address:
        """The server of a key or channel. Before the Cluster is known any of its servers: it will redirect."""
        return self._owners[slot(key)] if self._owners else self._location.nodes[0]

    def servers(self) -> set[Address]:
        """All that serve something."""
        return set(self._owners)

    async def known(self) -> None:
        """Return once the Cluster is known, however long that takes."""
        while not self._known.is_set():
            self.refresh()
            assert self._looking is not None  # noqa: S101
            await asyncio.wait([self._looking])

    def refresh(self) -> None:
        """Something did not go as it should: see how the Cluster looks now."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="shards")

    async def _look(self) -> None:
        servers = list({*self._owners, *self._location.nodes})
        random.shuffle(servers)
        for server in servers:
            with contextlib.suppress(RedisError, OSError, *_FAILURES):
                if owners := _owners(await self._ask(server), server):
                    self._take(owners)
                    break
        await asyncio.sleep(PAUSE)

    async def _ask(self, server: Address) -> Any:
        arguments = {**self._location.arguments(), "host": server[0], "port": server[1]}
        pool: Any = aioredis.ConnectionPool(
            socket_timeout=ASK_TIMEOUT,
            socket_connect_timeout=ASK_TIMEOUT,
            retry=AsyncRetry(NoBackoff(), 0),
            **arguments,
        )
        # Not a client of redis-py: one closes its connection in a task of its own, which may never get to run.
        connection = pool.make_connection()
        try:
            await connection.connect()
            await connection.send_command("CLUSTER", "SLOTS")
            return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)

    def _take(self, owners: list[Address]) -> None:
        if owners != self._owners:
            has_arrived = bool(self._owners) and not set(owners) <= set(self._owners)
            self._owners = owners
            self._known.set()
            logger.info("cluster", extra={"servers": sorted(f"{host}:{port}" for host, port in set(owners))})
            for tell in (*self.on_change, *(self.on_arrival if has_arrived else ())):
                tell()


def _owners(ranges: Any, asked: Address) -> list[Address]:
    """CLUSTER SLOTS as one address a slot; empty while a slot is served by nobody."""
    owners: list[Address | None] = [None] * 16384
    for first, last, (host, port, *_), *_ in ranges:
        # An empty host is that of the server that was asked.
        address = (host.decode() if host else asked[0], int(port))
        owners[first : last + 1] = [address] * (last - first + 1)
    return [] if None in owners else cast(list[Address], owners)


_shards: WeakKeyDictionary[asyncio.AbstractEventLoop, Shards] = WeakKeyDictionary()


def shards() -> Shards | None:
    """Those of the running loop; None when Redis is one server."""
    location = parse(conf().redis_url)
    if not location.nodes:
        return None
    loop = asyncio.get_running_loop()
    if loop not in _shards:
        _shards[loop] = Shards(location)
    return _shards[loop]


# --- Clients of redis-py ---------------------------------------------------------------------------------
#
# For what is sent now and then. What they raise when nobody can be reached is not a RedisError: here it is one. The
# asyncio client closes all connections when it looks at the Cluster anew, also those that are in use;
# `reinitialize_steps=0` keeps it from doing so for a slot that has moved. Both forget the addresses that they were
# given for those that these told them: after a failure they are asked again.


class _Cluster(AsyncRedisCluster):
    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().execute_command(*arguments, **options)
        except _FAILURES as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> RedisConnectionError:
        """The next attempt asks those in `REDIS_URL`, too."""
        for node in self.startup_nodes:
            self.nodes_manager.startup_nodes.setdefault(node.name, node)
        return RedisConnectionError(str(error))

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> AsyncClusterPipeline:
        return _Pipeline(self, transaction)  # type: ignore[abstract]


class _Pipeline(AsyncClusterPipeline):
    cluster_client: _Cluster

    async def initialize(self) -> AsyncClusterPipeline:
        try:
            return await super().initialize()
        except _FAILURES as error:
            raise self.cluster_client.failed(error) from error

    async def execute(self, *arguments: Any, **options: Any) -> list[Any]:
        try:
            return await super().execute(*arguments, **options)
        except _FAILURES as error:
            raise self.cluster_client.failed(error) from error


def client(location: Location, **options: Any) -> aioredis.Redis:
    """A client for asynchronous code that takes what is asked of `redis.asyncio.Redis` here."""
    made = _Cluster(
        startup_nodes=[AsyncClusterNode(*node) for node in location.nodes],
        max_connections=CONNECTIONS,
        require_full_coverage=False,
        reinitialize_steps=0,
        **_arguments(location.arguments()),
        **options,
    )
    return cast(aioredis.Redis, made)


class _SyncCluster(RedisCluster):
    given: Sequence[ClusterNode] = ()

    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*arguments, **options)  # type: ignore[no-untyped-call]
        except _FAILURES as error:
            self.nodes_manager.populate_startup_nodes(self.given)
            raise RedisConnectionError(str(error)) from error


def sync_client(location: Location, **options: Any) -> redis.Redis:
    """The same for synchronous code. Raises `redis.RedisError` when no server answers."""
    nodes = [ClusterNode(*node) for node in location.nodes]  # type: ignore[no-untyped-call]
    arguments = {**_arguments(location.sync_arguments()), **options}
    try:
        made = _SyncCluster(startup_nodes=list(nodes), require_full_coverage=False, **arguments)
    except _FAILURES as error:
        raise RedisConnectionError(str(error)) from error
    made.given = nodes
    return cast(redis.Redis, made)


def _arguments(parsed: dict[str, Any]) -> dict[str, Any]:
    """What an URL says, as the clients for Clusters take it."""
    skipped = {"host", "port", "db", "connection_class"}
    arguments = {name: value for name, value in parsed.items() if name not in skipped}
    return {**arguments, "ssl": True} if "connection_class" in parsed else arguments
