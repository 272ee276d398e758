from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser import launched
from tests.e2e.harness import Stack

if TYPE_CHECKING:
    from playwright.async_api import Browser


def _run(stack: Stack) -> Iterator[Stack]:
    try:
        yield stack.start_all()
    finally:
        stack.stop()
    stack.assert_calm()


@pytest.fixture(scope="session", params=["uvicorn", "daphne"])
def stack(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The system with default timings, its sockets served by each server we support."""
    stack = Stack(tmp_path_factory.mktemp(request.param), redis_url)
    stack.server = request.param
    yield from _run(stack)


@pytest.fixture(scope="session")
def uvicorn_stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The same by `runsockets` alone: for what daphne cannot by design (docs/protocol.md)."""
    yield from _run(Stack(tmp_path_factory.mktemp("uvicorn-only"), redis_url))


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A headless Chromium."""
    async with launched() as browser:
        yield browser
