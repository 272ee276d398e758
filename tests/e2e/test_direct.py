"""A backbone that publishes directly, beside one that writes the stream, while bridges come and go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest
from django.test import override_settings

from realtime.publisher import apublish
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import Client, Stack, eventually, unique

pytestmark = pytest.mark.usefixtures("without_outbox")


@pytest.fixture
def system(tmp_path: Path, settings) -> Iterator[Stack]:
    """A running system, of which this process is the backbone."""
    with EmbeddedRedis() as server, Stack(tmp_path, server.url) as stack:
        own = {"REDIS_URL": server.url, "PREFIX": stack.prefix, "PUBLISH_DIRECTLY": True}
        with override_settings(REALTIME={**settings.REALTIME, **own}):
            yield stack.start_all()


def numbers(client: Client) -> list[int]:
    return [int(frame["data"]["message_id"]) for frame in client.received("thread:message")]


async def read_once(stack: Stack, client: Client) -> None:
    stack.add("presence:update", {})  # becomes a dead letter
    await eventually(lambda: stack.redis.exists(stack.key("dead")))
    await eventually(lambda: stack.redis.hexists(stack.key("cursors"), stack.key("stream")))


async def test_message_is_delivered_while_no_bridge_runs(system: Stack):
    thread = unique("th")
    async with system.client("hub") as attendant, system.client("portal", threads=[thread]) as customer:
        for each in (attendant, customer):
            await each.call("join:thread", {"thread_id": thread})
        await read_once(system, attendant)
        system.processes[0].stop(SIGKILL)
        await apublish("thread:message", {"thread_id": thread, "message_id": 1})
        for each in (attendant, customer):
            await each.expect("thread:message", message_id="1")
        grant = {"thread_id": thread, "user_id": customer.user_id}
        await apublish("thread:revoke", grant)
        await apublish("thread:message", {"thread_id": thread, "message_id": 2})
        for each in (attendant, customer):
            await each.nothing("thread:message", "room:left")  # behind an order that waits for a bridge
        system.start("runbridge")
        await attendant.expect("thread:message", message_id="2")
        await customer.expect("room:left")
        assert numbers(customer) == [1]


@pytest.mark.slow
async def test_messages_of_both_ways_come_once_and_in_order_while_bridges_are_killed(system: Stack):
    thread, choose = unique("th"), random.Random(10)
    system.start("runbridge")
    done = asyncio.Event()

    written = 0

    async def publish() -> int:
        nonlocal written
        number = 0
        while not done.is_set() or number < 300:
            data = {"thread_id": thread, "message_id": number}
            if choose.random() < 0.2:
                system.add("thread:message", data, id=f"{thread}-{number}")
                written += 1
            else:
                for _ in range(choose.choice((1, 1, 1, 2))):  # as one whose answer was lost
                    await apublish("thread:message", data, id=f"{thread}-{number}")
                    written += 1
            number += 1
        return number

    async with system.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        await read_once(system, client)
        publishing = asyncio.create_task(publish())
        for _ in range(10):
            await asyncio.sleep(0.2)
            bridges = [process for process in system.processes if process.name == "runbridge"]
            bridges[-2].stop(SIGKILL)
            await asyncio.to_thread(system.start, "runbridge")
        done.set()
        count = await publishing
        await eventually(lambda: len(numbers(client)) >= count)
        assert numbers(client) == list(range(count))
        assert 0 < system.redis.xlen(system.key("stream")) < written  # both ways were taken
