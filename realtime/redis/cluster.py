"""redis-py's clients for a Redis Cluster, for commands off the hot path (`realtime.redis.topology` knows its servers).

The exceptions that they raise when no server can be reached are no RedisErrors: here they become some. The asyncio
client closes all connections, also those in use, when it reads the slots anew; `reinitialize_steps=0` keeps it from
doing so for a slot that has moved. Both clients replace the addresses that they were given by those that the servers
report: after a failure the given addresses are asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import redis
from redis import asyncio as aioredis
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.cluster import ClusterPipeline as AsyncClusterPipeline
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError

from realtime.redis.topology import FAILURES
from realtime.redis.url import Location

CONNECTIONS = 1000
"""Connections to a server; a command that needs another one fails."""


class _Cluster(AsyncRedisCluster):
    given: Sequence[AsyncClusterNode] = ()

    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().execute_command(*arguments, **options)
        except FAILURES as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> RedisConnectionError:
        """Let the next attempt ask the servers in `REDIS_URL`, too."""
        for node in self.given:
            self.nodes_manager.startup_nodes.setdefault(node.name, node)
        return RedisConnectionError(str(error))

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> AsyncClusterPipeline:
        given = (transaction,) if transaction else ()  # redis-py 5 has no such argument
        made = _Pipeline(self, *given)  # type: ignore[abstract]
        made.failed = self.failed
        return made


class _Pipeline(AsyncClusterPipeline):
    failed: Callable[[Exception], RedisConnectionError]

    async def initialize(self) -> AsyncClusterPipeline:
        try:
            return await super().initialize()
        except FAILURES as error:
            raise self.failed(error) from error

    async def execute(self, *arguments: Any, **options: Any) -> list[Any]:
        try:
            return await super().execute(*arguments, **options)
        except FAILURES as error:
            raise self.failed(error) from error


def client(location: Location, **options: Any) -> aioredis.Redis:
    """A client for asynchronous code, with the methods of `redis.asyncio.Redis` that this project uses."""
    nodes = [AsyncClusterNode(*node) for node in location.nodes]
    made = _Cluster(
        startup_nodes=list(nodes),
        require_full_coverage=False,
        reinitialize_steps=0,
        **{"max_connections": CONNECTIONS, **options, **_arguments(location, location.arguments())},
    )
    made.given = nodes
    return cast(aioredis.Redis, made)


class _SyncCluster(RedisCluster):
    given: Sequence[ClusterNode] = ()

    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*arguments, **options)  # type: ignore[no-untyped-call]
        except FAILURES as error:
            self.nodes_manager.populate_startup_nodes(self.given)
            raise RedisConnectionError(str(error)) from error


def sync_client(location: Location, **options: Any) -> redis.Redis:
    """A client for synchronous code. Raises `redis.RedisError` when no server answers."""
    nodes = [ClusterNode(*node) for node in location.nodes]  # type: ignore[no-untyped-call]
    arguments = {**options, **_arguments(location, location.sync_arguments())}
    try:
        made = _SyncCluster(startup_nodes=list(nodes), require_full_coverage=False, **arguments)
    except FAILURES as error:
        raise RedisConnectionError(str(error)) from error
    made.given = nodes
    return cast(redis.Redis, made)


def _arguments(location: Location, parsed: dict[str, Any]) -> dict[str, Any]:
    """The arguments in a URL, as the clients for Clusters take them."""
    skipped = {"host", "port", "db", "connection_class"}
    arguments = {
        name: value for name, value in parsed.items() if name not in skipped
    } | location.pool_arguments()
    return {**arguments, "ssl": True} if "connection_class" in parsed else arguments
