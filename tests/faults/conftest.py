from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.faults.crowd import Product
from tests.faults.world import World

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """One for all tests of a file that break nothing: each has users and threads of its own."""
    with Product(tmp_path_factory.mktemp("product")) as product:
        yield product.start()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A product on a Redis of its own, not started yet."""
    (tmp_path / "redis").mkdir()
    with EmbeddedRedis(tmp_path / "redis") as server:
        async with World(tmp_path, server) as world:
            yield world
