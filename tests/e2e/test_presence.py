"""Presence with short timings, through real processes: each change is announced once, to the right groups."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest

from tests.e2e.harness import Client, Stack, eventually, free_port, unique

GRACE = 2.0
LEASE = 3.0
AWAY = 6.0
"""Longer than lease and grace period together: users whose process is gone or frozen are not away before."""
SILENT_AFTER = 12.0


@pytest.fixture(scope="module")
def quick(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system whose grace period, lease and patience are a few seconds."""
    with Stack(
        tmp_path_factory.mktemp("quick"),
        redis_url,
        REALTIME_HEARTBEAT_INTERVAL="0.5",
        REALTIME_AWAY_AFTER=str(AWAY),
        REALTIME_GRACE_PERIOD=str(GRACE),
        REALTIME_NODE_LEASE=str(LEASE),
        REALTIME_PRESENCE_TTL=str(SILENT_AFTER),
    ) as stack:
        yield stack.start_all()


def said(observer: Client, user_id: str) -> list[str]:
    """What the observer received about a user, in order."""
    return [
        frame["event"].removeprefix("attendant:")
        for frame in observer.frames
        if frame["event"].startswith("attendant:") and frame["data"]["user_id"] == user_id
    ]


async def keep_alive(client: Client) -> None:
    while True:
        await client.send("heartbeat")
        await asyncio.sleep(0.4)


async def test_state_on_connect_lists_the_user_and_every_attendant_but_no_admin(quick: Stack):
    group = unique("g")
    async with quick.client("hub", role="admin", groups=[group]) as admin:
        assert (await admin.expect("presence:state"))["data"]["members"] == []
        async with quick.client("hub", name="Ana", groups=[group]) as ana:
            state = (await ana.expect("presence:state"))["data"]
            assert [(m["user_id"], m["name"], m["status"]) for m in state["members"]] == [
                (ana.user_id, "Ana", "online")
            ]
            assert (state["group"], state["total"]) == (group, 1)
            assert state["offset"]
            frame = await admin.expect("attendant:online", user_id=ana.user_id)
            assert frame["room"] == f"presence:{group}"
            assert frame["data"]["since"] == state["members"][0]["since"]
        await admin.nothing("attendant:offline", within=0.2)


@pytest.mark.slow
async def test_attendant_back_within_grace_period_is_never_announced_offline(quick: Stack):
    group, user = unique("g"), unique("u")
    async with quick.client("hub", role="admin", groups=[group]) as admin:
        async with quick.client("hub", user, groups=[group]) as client:
            client.drop()
        async with quick.client("hub", user, groups=[group]) as again:
            beating = asyncio.create_task(keep_alive(again))
            await asyncio.sleep(GRACE * 1.5)
            beating.cancel()
            assert said(admin, user) == ["online"]


async def test_offline_is_announced_once_after_the_grace_period(quick: Stack):
    group, user = unique("g"), unique("u")
    async with quick.client("hub", role="admin", groups=[group]) as admin:
        async with quick.client("hub", user, groups=[group]):
            pass
        await admin.expect("attendant:offline", user_id=user)
        await admin.nothing("attendant:offline")
        assert said(admin, user) == ["online", "offline"]
    assert [(t["from"], t["to"], t["reason"]) for t in quick.transitions(user)] == [
        ("offline", "online", "connect"),
        ("online", "offline", "grace"),
    ]


async def test_chosen_away_survives_other_tabs_and_reconnects_until_online_is_chosen(quick: Stack):
    group, user = unique("g"), unique("u")
    async with quick.client("hub", role="admin", groups=[group]) as admin:
        async with quick.client("hub", user, groups=[group]) as client:
            await client.call("presence:away")
            await admin.expect("attendant:away", user_id=user)
            async with quick.client("hub", user, groups=[group]) as tab:
                await tab.call("heartbeat")
        async with quick.client("hub", user, groups=[group]) as again:
            state = (await again.expect("presence:state"))["data"]
            assert [m["status"] for m in state["members"]] == ["away"]
            await again.call("presence:online")
            await admin.expect("attendant:online", user_id=user, status="online")
            await eventually(lambda: said(admin, user) == ["online", "away", "online"])


@pytest.mark.slow
async def test_without_heartbeat_away_by_itself_and_back_with_the_next_one(quick: Stack):
    group, user = unique("g"), unique("u")
    async with (
        quick.client("hub", role="admin", groups=[group]) as admin,
        quick.client("hub", user, groups=[group]) as client,
    ):
        await admin.expect("attendant:away", user_id=user)
        await client.send("heartbeat")
        await eventually(lambda: said(admin, user) == ["online", "away", "online"])
    await eventually(lambda: len(quick.transitions(user)) >= 3)
    assert [t["reason"] for t in quick.transitions(user)][:3] == ["connect", "timeout", "heartbeat"]


async def test_logout_is_announced_at_once_and_ends_the_connection(quick: Stack):
    group, user = unique("g"), unique("u")
    async with (
        quick.client("hub", role="admin", groups=[group]) as admin,
        quick.client("hub", user, groups=[group]) as client,
    ):
        await client.call("presence:offline")
        assert await client.expect_close() == 1000
        await admin.expect("attendant:offline", user_id=user)
    assert [t["reason"] for t in quick.transitions(user)] == ["connect", "logout"]


@pytest.mark.slow
async def test_who_sends_frames_but_no_heartbeat_is_away_and_stays_connected_and_present(quick: Stack):
    group, user = unique("g"), unique("u")
    async with quick.client("hub", user, groups=[group]) as client:
        for _ in range(int(SILENT_AFTER) + 2):
            await client.call("leave:thread", {"thread_id": "1"})
            await asyncio.sleep(1)
        async with quick.client("hub", role="admin", groups=[group]) as admin:
            state = (await admin.expect("presence:state"))["data"]
            assert [(m["user_id"], m["status"]) for m in state["members"]] == [(user, "away")]
        assert client.close_code is None


@pytest.mark.slow
async def test_killed_process_loses_its_users_after_lease_and_grace_each_announced_once(quick: Stack):
    group, user, moved = unique("g"), unique("gone"), unique("moved")
    port = free_port()
    doomed = quick.start_sockets(port)
    async with quick.client("hub", role="admin", groups=[group]) as admin:
        async with (
            quick.client("hub", user, port=port, groups=[group]),
            quick.client("hub", moved, port=port, groups=[group]),
        ):
            await admin.expect("attendant:online", user_id=moved)
            doomed.stop(SIGKILL)
        async with quick.client("hub", moved, groups=[group]) as again:
            beating = asyncio.create_task(keep_alive(again))
            await admin.expect("attendant:offline", user_id=user)
            beating.cancel()
            assert said(admin, user) == ["online", "offline"]
            assert said(admin, moved) == ["online"]
    assert [t["reason"] for t in quick.transitions(user)] == ["connect", "lease"]


async def test_users_of_a_process_that_was_frozen_are_announced_again_and_what_is_acknowledged_counts(
    quick: Stack,
):
    """Frozen (SIGSTOP, a suspended machine) for longer than lease and grace period together."""
    group, user, port = unique("g"), unique("u"), free_port()
    process = quick.start_sockets(port)
    async with (
        quick.client("hub", role="admin", groups=[group]) as admin,
        quick.client("hub", user, port=port, groups=[group]) as client,
    ):
        await admin.expect("attendant:online", user_id=user)
        process.signal(SIGSTOP)
        await admin.expect("attendant:offline", user_id=user)
        process.signal(SIGCONT)
        await admin.expect("attendant:online", user_id=user)
        await client.call("presence:away")
        await admin.expect("attendant:away", user_id=user)
        await client.call("heartbeat")
        await client.call("presence:online")
        await admin.expect("attendant:online", user_id=user)
        assert said(admin, user) == ["online", "offline", "online", "away", "online"]
    process.stop()


async def test_users_who_left_a_process_that_was_frozen_are_announced_offline_once(quick: Stack):
    group, users, port = unique("g"), [unique("u") for _ in range(40)], free_port()
    process = quick.start_sockets(port)
    async with quick.client("hub", role="admin", groups=[group]) as admin, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(quick.client("hub", user, port=port, groups=[group]))
            for user in users
        ]
        process.signal(SIGSTOP)
        for client in clients:
            client.drop()
        for user in users:
            await admin.expect("attendant:offline", user_id=user)
        process.signal(SIGCONT)
        await eventually(lambda: "presence registered again" in process.output)
        # Those who came first may have been away before the last one was there.
        told = [[status for status in said(admin, user) if status != "away"] for user in users]
        assert told == [["online", "offline"]] * len(users)
    process.stop()
