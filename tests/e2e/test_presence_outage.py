"""Presence while Redis stands still or comes back empty: no user flaps, and none stays for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import Stack, eventually, unique
from tests.e2e.test_presence import said

GRACE = 2.0
LEASE = 3.0

pytestmark = pytest.mark.slow


@pytest.fixture
def fragile(server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system on a Redis of its own."""
    with Stack(
        tmp_path_factory.mktemp("fragile"),
        server.url,
        REALTIME_GRACE_PERIOD=str(GRACE),
        REALTIME_NODE_LEASE=str(LEASE),
        REALTIME_AWAY_AFTER="31",
        REALTIME_PRESENCE_TTL="60",
    ) as stack:
        yield stack.start_all()


async def test_redis_paused_for_longer_than_the_lease_and_the_grace_period_announces_no_user(
    fragile: Stack, server: EmbeddedRedis
):
    group, user = unique("g"), unique("u")
    async with (
        fragile.client("hub", role="admin", groups=[group]) as admin,
        fragile.client("hub", user, groups=[group]) as client,
    ):
        await admin.expect("attendant:online", user_id=user)
        assert server.process is not None
        server.process.send_signal(SIGSTOP)
        await asyncio.sleep(LEASE + GRACE + 0.5)
        server.process.send_signal(SIGCONT)
        await asyncio.sleep(GRACE * 1.5)
        await client.call("presence:away")
        await admin.expect("attendant:away", user_id=user)
        assert said(admin, user) == ["online", "away"]


async def test_redis_restarted_empty_keeps_connected_users_and_ends_those_in_grace(
    fragile: Stack, server: EmbeddedRedis
):
    group, stays, away, leaves = unique("g"), unique("stays"), unique("away"), unique("leaves")
    async with (
        fragile.client("hub", role="admin", groups=[group]) as admin,
        fragile.client("hub", stays, groups=[group]),
        fragile.client("hub", away, groups=[group]) as client,
    ):
        await client.call("presence:away")
        async with fragile.client("hub", leaves, groups=[group]):
            await admin.expect("attendant:online", user_id=leaves)
        server.stop(SIGKILL)
        await asyncio.sleep(0.3)
        server.start()
        # The room's own subscription may lose the announcement (Pub/Sub); the stream may not.
        await eventually(lambda: [t["reason"] for t in fragile.transitions(leaves)] == ["reset"])
        await asyncio.sleep(GRACE)
        assert fragile.transitions(stays) == fragile.transitions(away) == []
    async with fragile.client("hub", role="admin", groups=[group]) as late:
        members = (await late.expect("presence:state"))["data"]["members"]
        assert {m["user_id"]: m["status"] for m in members} == {stays: "online", away: "away"}
