"""Connections that Sentinel leads to the primary. (tests/faults/test_sentinel.py kills it.)"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError

from realtime.redis.client import client, close, key, sync_client
from realtime.redis.pipelining import Pipe
from realtime.redis.url import Location
from tests.servers import HOST, Server, Watched

pytestmark = pytest.mark.usefixtures("process")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with Watched(tmp_path_factory.mktemp("watched")) as servers:
        yield servers


@pytest.fixture(scope="module")
def redis_url(servers: Watched) -> str:
    """With every option that is permitted for Sentinels."""
    return (
        f"{servers.url}?client_name=ours&db=0&health_check_interval=15&max_connections=9"
        "&socket_connect_timeout=4&socket_keepalive=1&socket_timeout=5&timeout=5"
    )


@pytest.fixture
def misled(servers: Watched, monkeypatch) -> None:
    """The Sentinel that is asked has not heard of the fail-over."""

    async def stale(self: Location) -> tuple[str, int]:
        return HOST, servers.replica.port

    sync_client.cache_clear()  # no connection that is open already
    monkeypatch.setattr(Location, "primary", stale)
    monkeypatch.setattr(Location, "sync_primary", lambda self: (HOST, servers.replica.port))


async def test_everything_goes_to_the_primary(servers: Watched):
    await client().set(key("a"), "1")
    assert sync_client().get(key("a")) == b"1"
    pipe = Pipe()
    assert (await pipe.send("ROLE"))[0] == b"master"
    pipe.close()


@pytest.mark.usefixtures("misled")
async def test_who_is_not_the_primary_is_not_spoken_to():
    with pytest.raises(RedisConnectionError, match="not the primary"):
        await client().get("a")
    with pytest.raises(RedisConnectionError, match="not the primary"):
        sync_client().get("a")
    pipe = Pipe()
    with pytest.raises(RedisConnectionError, match="not the primary"):
        await pipe.send("GET", "a")


async def test_primary_that_was_demoted_is_left(tmp_path: Path, monkeypatch):
    """By an operator: Sentinel cuts the connections, too."""

    async def primary(self: Location) -> tuple[str, int]:
        return HOST, server.port

    sync_client.cache_clear()
    with Server(tmp_path / "demoted") as server:
        monkeypatch.setattr(Location, "primary", primary)
        monkeypatch.setattr(Location, "sync_primary", lambda self: (HOST, server.port))
        pipe = Pipe()
        for demoted in (False, True):
            if demoted:
                server.call("REPLICAOF", HOST, 1)
            with pytest.raises(RedisConnectionError) if demoted else contextlib.nullcontext():
                await client().set("a", "1")
            with pytest.raises(RedisConnectionError) if demoted else contextlib.nullcontext():
                sync_client().set("a", "1")
            with pytest.raises(ReadOnlyError) if demoted else contextlib.nullcontext():
                await pipe.send("SET", "a", "1")
        with pytest.raises(RedisConnectionError, match="not the primary"):
            await pipe.send("GET", "a")
        pipe.close()
    sync_client().close()
    await close()


async def test_sentinels_that_are_away_are_a_redis_error(settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis+sentinel://127.0.0.1:1,127.0.0.1:2/shop"}
    with pytest.raises(RedisError):
        await client().get("a")
    with pytest.raises(RedisError):
        sync_client().get("a")
