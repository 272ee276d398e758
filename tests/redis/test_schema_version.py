"""Two versions that write Redis differently never share it."""

from __future__ import annotations

import pytest

from presence.sweeper import Sweeper
from realtime.bridge import stream_delivery
from realtime.bridge.bridge import Bridge
from realtime.bridge.bus_entry import BUS
from realtime.connections.registry import ConnectionRegistry
from realtime.redis import schema_version
from realtime.redis.client import client, key
from realtime.redis.schema_version import SCHEMA_VERSION, OtherSchemaVersion
from realtime.server.readiness import reasons_not_ready
from tests.inprocess import bridging, eventually

pytestmark = pytest.mark.usefixtures("process")


async def test_first_process_writes_the_schema_version_and_the_others_find_it():
    await schema_version.claim()
    await schema_version.claim()
    assert await client().get(key("layout")) == str(SCHEMA_VERSION).encode()


@pytest.fixture
async def other(process: str) -> None:
    await client().set(key("layout"), SCHEMA_VERSION + 1)


@pytest.mark.usefixtures("other")
async def test_another_schema_version_is_refused_and_left_as_it_is():
    with pytest.raises(
        OtherSchemaVersion,
        match=rf"layout is {SCHEMA_VERSION + 1}, this version writes {SCHEMA_VERSION}: .*PREFIX",
    ):
        await schema_version.claim()
    assert await client().get(key("layout")) == str(SCHEMA_VERSION + 1).encode()


@pytest.mark.usefixtures("other")
async def test_no_client_is_let_in_and_readiness_says_why():
    with pytest.raises(OtherSchemaVersion):
        await ConnectionRegistry().start()
    [reason] = await reasons_not_ready()
    assert "this version writes" in reason


@pytest.mark.usefixtures("other")
async def test_nothing_is_delivered_and_no_presence_changes():
    with pytest.raises(OtherSchemaVersion):
        await Bridge([BUS]).lead_or_stand_by()
    with pytest.raises(OtherSchemaVersion):
        await Sweeper().sweep()
    assert await client().keys(key("*")) == [key("layout").encode()]


async def test_bridge_writes_the_schema_version_again_to_a_wiped_redis(monkeypatch):
    monkeypatch.setattr(stream_delivery, "TRIM_SECONDS", 0.1)
    async with bridging():
        await client().delete(key("layout"))
        await eventually(lambda: client().exists(key("layout")))
    assert await client().get(key("layout")) == str(SCHEMA_VERSION).encode()
