"""The layers under test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.layers.support import Layers, Proxy


@pytest.fixture
async def layers(process: str) -> AsyncIterator[Layers]:
    layers = Layers()
    yield layers
    await layers.flush()


@pytest.fixture
def layer(layers: Layers) -> Any:
    return layers.make()


@pytest.fixture
def server(realtime_redis: str, settings) -> Iterator[EmbeddedRedis]:
    """A Redis of the test's own, with nothing in it."""
    with EmbeddedRedis() as server:
        settings.REALTIME = {**settings.REALTIME, "REDIS_URL": server.url}
        yield server


@pytest.fixture
async def alone(process: str, server: EmbeddedRedis) -> AsyncIterator[Layers]:
    """On a Redis of its own."""
    layers = Layers()
    yield layers
    await layers.flush()


@pytest.fixture
async def proxy(server: EmbeddedRedis) -> AsyncIterator[Proxy]:
    async with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
async def behind(process: str, settings, proxy: Proxy) -> AsyncIterator[Layers]:
    """On a Redis of its own behind a proxy, with a short lease: what is dead is found out soon."""
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": proxy.url, "NODE_LEASE": 0.8}
    layers = Layers()
    yield layers
    await layers.flush()


@pytest.fixture
def _directly(process: str, settings) -> None:
    settings.REALTIME = {**settings.REALTIME, "PUBLISH_DIRECTLY": True}
