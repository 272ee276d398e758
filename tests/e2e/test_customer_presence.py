"""Customers' presence through real processes: two socket servers, reloads, tabs, a kill."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from signal import SIGKILL

import pytest

from tests.e2e.harness import Client, Stack, eventually, free_port, unique

GRACE = 3.0

pytestmark = pytest.mark.slow


@dataclass
class Two:
    """Two socket servers on one Redis, with short timings."""

    stack: Stack
    other: int


@pytest.fixture(scope="module")
def two(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with Stack(
        tmp_path_factory.mktemp("customers"),
        redis_url,
        REALTIME_CUSTOMER_PRESENCE="1",
        REALTIME_HEARTBEAT_INTERVAL="0.5",
        REALTIME_AWAY_AFTER="4.0",
        REALTIME_GRACE_PERIOD=str(GRACE),
        REALTIME_NODE_LEASE="3.0",
        REALTIME_PRESENCE_TTL="12",
    ) as stack:
        two = Two(stack, free_port())
        stack.start("runbridge")
        stack.start_all()
        stack.start_sockets(two.other)
        yield two


def said(attendant: Client, user_id: str) -> list[str]:
    """What the attendant was told about a customer's coming and going, in order."""
    return [
        frame["event"].removeprefix("customer:")
        for frame in attendant.frames
        if frame["event"] in {"customer:online", "customer:offline"} and frame["data"]["user_id"] == user_id
    ]


def customers(frame: dict) -> set[str]:
    return {customer["user_id"] for customer in frame["data"]["customers"]}


async def test_reloads_on_either_server_are_not_told(two: Two):
    stack, thread, carla = two.stack, unique("th"), unique("u")
    async with stack.client("hub") as ana, stack.client("hub", port=two.other) as bia:
        for attendant in (ana, bia):
            await attendant.call("join:thread", {"thread_id": thread})
            assert customers(await attendant.expect("customer:state", thread_id=thread)) == set()
        for port in (stack.port, two.other, stack.port, two.other):
            async with stack.client("portal", carla, threads=[thread], port=port) as page:
                await page.call("join:thread", {"thread_id": thread})
                await asyncio.sleep(GRACE / 4)
        for attendant in (ana, bia):
            await attendant.expect("customer:offline", user_id=carla, thread_id=thread)
            assert said(attendant, carla) == ["online", "offline"]


async def test_tabs_are_one_customer_and_a_late_attendant_learns_of_them(two: Two):
    stack, thread, carla = two.stack, unique("th"), unique("u")
    async with stack.client("hub") as ana:
        await ana.call("join:thread", {"thread_id": thread})
        async with stack.client("portal", carla, name="Carla", threads=[thread]) as first:
            async with stack.client("portal", carla, name="Carla", threads=[thread], port=two.other):
                await ana.expect("customer:online", user_id=carla)
            await asyncio.sleep(GRACE * 2)
            async with stack.client("hub", port=two.other) as bia:
                await bia.call("join:thread", {"thread_id": thread})
                state = await bia.expect("customer:state", thread_id=thread)
                assert [customer["name"] for customer in state["data"]["customers"]] == ["Carla"]
            assert first.received("customer:online") == first.received("customer:state") == []
        assert said(ana, carla) == ["online"]
        await ana.expect("customer:offline", user_id=carla)


async def test_customers_of_a_killed_server_go_offline_unless_they_come_back(two: Two):
    stack, thread, carla, davi = two.stack, unique("th"), unique("u"), unique("u")
    port = free_port()
    doomed = stack.start_sockets(port)
    async with stack.client("hub") as ana:
        await ana.call("join:thread", {"thread_id": thread})
        async with (
            stack.client("portal", carla, threads=[thread], port=port) as gone,
            stack.client("portal", davi, threads=[thread], port=port),
        ):
            for user in (carla, davi):
                await ana.expect("customer:online", user_id=user)
            doomed.stop(SIGKILL)
            await gone.expect_close()
        async with stack.client("portal", davi, threads=[thread]):
            await ana.expect("customer:offline", user_id=carla)
            await asyncio.sleep(GRACE)
            assert said(ana, carla) == ["online", "offline"]
            assert said(ana, davi) == ["online"]


async def test_revoke_takes_customers_of_all_servers_out_once(two: Two):
    stack, thread, carla = two.stack, unique("th"), unique("u")
    async with (
        stack.client("hub") as ana,
        stack.client("portal", carla, threads=[thread]) as first,
        stack.client("portal", carla, threads=[thread], port=two.other) as second,
    ):
        await ana.call("join:thread", {"thread_id": thread})
        assert customers(await ana.expect("customer:state")) == {carla}
        for page in (first, second):
            await page.call("join:thread", {"thread_id": thread})
        stack.add("thread:revoke", {"thread_id": thread, "user_id": carla})
        for page in (first, second):
            await page.expect("room:left")
        await ana.expect("customer:offline", user_id=carla, thread_id=thread)
        await asyncio.sleep(GRACE * 1.5)
        assert said(ana, carla).count("offline") == 1


async def test_transitions_of_customers_carry_their_namespace(two: Two):
    stack, thread, carla = two.stack, unique("th"), unique("u")
    async with stack.client("portal", carla, threads=[thread]):
        [transition] = await eventually(lambda: stack.transitions(carla))
    assert (transition["namespace"], transition["to"], transition["groups"]) == ("portal", "online", [thread])
