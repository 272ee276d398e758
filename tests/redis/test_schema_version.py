"""Two versions that write Redis differently never share it."""

from __future__ import annotations

import asyncio

import pytest

from presence.sweeper import Sweeper
from realtime.bridge import bridge
from realtime.bridge.incoming import BUS
from realtime.connections.registry import ConnectionRegistry
from realtime.redis import schema_version as layout
from realtime.redis.client import client, key
from realtime.redis.schema_version import LAYOUT, OtherSchemaVersion
from realtime.server.readiness import reasons_not_ready
from tests.inprocess import bridging, eventually

pytestmark = pytest.mark.usefixtures("process")


async def test_first_one_says_which_layout_it_is_and_the_others_find_it():
    await layout.claim()
    await layout.claim()
    assert await client().get(key("layout")) == str(LAYOUT).encode()


@pytest.fixture
async def other(process: str) -> None:
    await client().set(key("layout"), LAYOUT + 1)


@pytest.mark.usefixtures("other")
async def test_another_layout_is_refused_and_left_as_it_is():
    with pytest.raises(
        OtherSchemaVersion, match=rf"layout is {LAYOUT + 1}, this version writes {LAYOUT}: .*PREFIX"
    ):
        await layout.claim()
    assert await client().get(key("layout")) == str(LAYOUT + 1).encode()


@pytest.mark.usefixtures("other")
async def test_nobody_is_let_in_and_readiness_says_why():
    with pytest.raises(OtherSchemaVersion):
        await ConnectionRegistry().start()
    [reason] = await reasons_not_ready()
    assert "this version writes" in reason


@pytest.mark.usefixtures("other")
async def test_nothing_is_delivered_and_nobody_is_judged(caplog):
    running = asyncio.create_task(bridge.Bridge([BUS]).run())
    try:
        await eventually(lambda: any("this version writes" in str(vars(each)) for each in caplog.records))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    with pytest.raises(OtherSchemaVersion):
        await Sweeper().sweep()
    assert await client().keys(key("*")) == [key("layout").encode()]


async def test_wiped_redis_is_told_again_while_the_bridge_goes_on(monkeypatch):
    monkeypatch.setattr(bridge, "TRIM_SECONDS", 0.01)
    async with bridging():
        await eventually(lambda: client().exists(key("layout")))
        await client().delete(key("layout"))
        await eventually(lambda: client().exists(key("layout")))
    assert await client().get(key("layout")) == str(LAYOUT).encode()
