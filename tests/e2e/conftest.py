from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e import hooks
from tests.e2e.admin import System
from tests.e2e.browser import launched, require_chromium, require_desk
from tests.e2e.desk import Desk, Screen
from tests.e2e.harness import CHEAP_LOGINS, SERVERS, Stack, eventually
from tests.e2e.product import NAMESPACES
from tests.e2e.site import Site, serving

if TYPE_CHECKING:
    from playwright.async_api import Browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests with the browser run in one event loop: to launch it takes longer than what most of them do."""
    for item in items:
        if isinstance(item, pytest.Function) and "browser" in item.fixturenames:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A server of their own for what runs all the time: tests within this process cut every connection to theirs."""
    if url := os.environ.get("TEST_REDIS_URL"):
        yield url
    else:
        with EmbeddedRedis() as server:
            yield server.url


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    """A Redis of the test's own, which may be stopped."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture(scope="session", params=SERVERS)
def stack(request: pytest.FixtureRequest) -> Stack:
    """The system with default timings, its sockets served by each server we support."""
    stack: Stack = request.getfixturevalue(f"{request.param}_stack")
    return stack


@pytest.fixture(scope="session")
def uvicorn_stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """By `runsockets`; alone, for what daphne cannot by design (docs/protocol.md)."""
    with Stack(tmp_path_factory.mktemp("uvicorn"), redis_url) as stack:
        yield stack.start_all()


@pytest.fixture(scope="session")
def daphne_stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("daphne"), redis_url) as stack:
        stack.server = "daphne"
        yield stack.start_all()


@pytest.fixture(scope="module")
def product(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The processes of a product with namespaces and kinds of rooms of its own."""
    with Stack(
        tmp_path_factory.mktemp("ops"),
        redis_url,
        REALTIME_NAMESPACES=NAMESPACES,
        REALTIME_GRACE_PERIOD="0.3",
        REALTIME_LIMIT_ROOMS="12",
        REALTIME_LIMIT_RATE="1000",
        REALTIME_LIMIT_BURST="1000",
    ) as stack:
        yield stack.start_all()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    require_chromium()
    async with launched() as chromium:
        yield chromium


@pytest_asyncio.fixture(loop_scope="session")
async def browser(chromium: Browser) -> AsyncIterator[Browser]:
    """A headless Chromium, in which no page is open."""
    yield chromium
    for context in chromium.contexts:
        await context.close()


@pytest.fixture(scope="module")
def site(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The page of the React hooks, and the processes that it needs."""
    with serving(redis_url, tmp_path_factory, hooks.PAGE, "test/pages/hooks.tsx") as site:
        yield site


# --- The admin -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with an admin and a recorder, for all tests of a file: to start it takes longer than what they do."""
    require_chromium()
    unlimited = {"REALTIME_LIMIT_NAME_LOGINS": "0", "REALTIME_LIMIT_ADDRESS_LOGINS": "0"}
    with System(tmp_path_factory.mktemp("admin"), redis_url, **unlimited) as system:
        system.open().start("runrecorder")
        yield system


@pytest.fixture
async def clean(system: System) -> None:
    """No dead letter and no connection is left of the test before."""
    system.redis.delete(system.key("dead"))
    await eventually(lambda: _is_empty(system))


async def _is_empty(system: System) -> bool:
    return len(await system.admin.instances()) == 2 and not await system.admin.find()


# --- The demo's desk -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """The demo's processes."""
    require_chromium()
    require_desk()
    with Desk(tmp_path_factory.mktemp("demo"), redis_url) as desk:
        # All tests log in as the same few people, more often in a minute than people do.
        desk.env |= {"REALTIME_LIMIT_NAME_LOGINS": "0", "REALTIME_LIMIT_ADDRESS_LOGINS": "0"}
        desk.manage("migrate", "--verbosity", "0")
        desk.manage("createdemo", **CHEAP_LOGINS)
        desk.start("runbridge")
        desk.sockets = desk.start_sockets()
        desk.start("runweb", **CHEAP_LOGINS)
        yield desk


@pytest.fixture
def desk(demo: Desk) -> Iterator[Desk]:
    """The demo, in which the test leaves no chat behind."""
    yield demo
    demo.end_chats()


@pytest_asyncio.fixture(loop_scope="session")
async def screen(desk: Desk, browser: Browser) -> AsyncIterator[Screen]:
    """The demo's page."""
    screen = await Screen(await browser.new_page()).open(desk.page_url)
    yield screen
    await screen.page.close()
    assert not screen.errors
