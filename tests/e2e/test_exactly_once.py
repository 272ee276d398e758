"""Bridges die and connections break: every client still gets every message of the stream once, in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import pytest
from redis import Redis

from realtime.bridge.bridge import LEASE_SECONDS
from realtime.bridge.bus_entry import KEEP_SECONDS
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import PATIENCE, Client, Process, Stack, eventually, unique


@pytest.fixture
def system(server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Sockets on a Redis of their own, and no bridge yet."""
    with Stack(tmp_path_factory.mktemp("system"), server.url) as stack:
        stack.start_sockets()
        yield stack


class Conversation:
    """Clients in several threads, what is said there, and what each of them must therefore get."""

    def __init__(self, stack: Stack, threads: list[str], clients: list[Client], seed: int) -> None:
        self.stack = stack
        self.threads = threads
        self.clients = clients
        self.chance = random.Random(seed)
        self.expected: dict[str, list[str]] = {thread: [] for thread in threads}
        self._said = 0
        self._with_id: list[tuple[str, list[str], str]] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, stack: Stack, seed: int = 0) -> AsyncIterator[Conversation]:
        threads = [unique("th") for _ in range(4)]
        async with stack.client("hub") as attendant, stack.client("portal", threads=threads) as customer:
            for client in (attendant, customer):
                for thread in threads:
                    await client.call("join:thread", {"thread_id": thread})
            yield cls(stack, threads, [attendant, customer], seed)

    def say(self, count: int = 1) -> None:
        """Append messages to the stream: some to two rooms, some with an id, some of those twice."""
        for _ in range(count):
            if self._with_id and self.chance.random() < 0.1:
                id, threads, message_id = self.chance.choice(self._with_id)
                self._add(threads, message_id, id)  # a duplicate: no client gets it
                continue
            self._said += 1
            threads = self.chance.sample(self.threads, 2 if self.chance.random() < 0.2 else 1)
            message_id = str(self._said)
            id = unique("id") if self.chance.random() < 0.3 else ""
            if id:
                self._with_id.append((id, threads, message_id))
            self._add(threads, message_id, id)
            for thread in threads:
                self.expected[thread].append(message_id)

    def _add(self, threads: list[str], message_id: str, id: str) -> None:
        self.stack.add(
            "thread:message",
            {"thread_id": threads[0], "message_id": message_id},
            rooms=[f"thread:{thread}" for thread in threads],
            **({"id": id} if id else {}),
        )

    async def keep_talking(self, count: int) -> None:
        for _ in range(count):
            self.say()
            await asyncio.sleep(self.chance.choice((0, 0, 0.001, 0.004)))

    async def assert_all_got_everything_once_and_in_order(self) -> None:
        total = sum(map(len, self.expected.values()))
        for client in self.clients:
            with contextlib.suppress(AssertionError):
                await eventually(
                    lambda client=client: len(client.received("thread:message")) >= total, PATIENCE
                )
            found: dict[str, list[str]] = {thread: [] for thread in self.threads}
            for frame in client.received("thread:message"):
                found[frame["room"].partition(":")[2]].append(frame["data"]["message_id"])
            assert found == self.expected
            assert not client.received("room:gap")


def leader(bridges: list[Process]) -> Process:
    """The bridge that said last that it delivers."""

    def leads_since(bridge: Process) -> str:
        lines = [json.loads(line) for line in bridge.output.splitlines() if line.startswith("{")]
        said = [line for line in lines if line["message"] in ("delivering", "standing by")]
        return said[-1]["time"] if said and said[-1]["message"] == "delivering" else ""

    return max(bridges, key=leads_since)


# --- Chaos -------------------------------------------------------------------------------------------


class Chaos:
    """Does harm to bridges and connections, until the talking is over."""

    def __init__(self, stack: Stack, server: EmbeddedRedis, bridges: list[Process], seed: int) -> None:
        self.stack = stack
        self.server = server
        self.bridges = bridges
        self.chance = random.Random(seed)
        self.done: list[str] = []

    async def rage(self, until: asyncio.Task[Any]) -> None:
        harms = [self.kill_a_bridge, self.flush_scripts, self.cut_connections, self.cut_subscriptions]
        for harm in (*harms, *self.chance.choices(harms, k=100)):
            if until.done() and len(self.done) > len(harms):
                return
            self.done.append(harm.__name__)
            harm()
            await asyncio.sleep(self.chance.uniform(0, 0.4))

    def kill_a_bridge(self) -> None:
        victim = self.bridges.pop(self.chance.randrange(len(self.bridges)))
        victim.stop(SIGKILL)
        self.bridges.append(self.stack.start("runbridge", ready=""))

    def flush_scripts(self) -> None:
        with self.server.client() as redis:
            redis.script_flush()

    def cut_connections(self) -> None:
        with self.server.client() as redis:
            redis.client_kill_filter(_type="normal", skipme=True)

    def cut_subscriptions(self) -> None:
        with self.server.client() as redis:
            redis.client_kill_filter(_type="pubsub")


@pytest.mark.slow
@pytest.mark.parametrize(("count", "seed"), [(1, 11), (3, 12)], ids=["one bridge", "three bridges"])
async def test_bridges_killed_scripts_flushed_and_connections_cut_at_any_moment(
    system: Stack, server: EmbeddedRedis, count: int, seed: int
):
    bridges = [system.start("runbridge", ready="") for _ in range(count)]
    async with Conversation.of(system, seed) as conversation:
        talking = asyncio.create_task(conversation.keep_talking(1500))
        chaos = Chaos(system, server, bridges, seed)
        await chaos.rage(until=talking)
        await talking
        assert "kill_a_bridge" in chaos.done
        await conversation.assert_all_got_everything_once_and_in_order()


# --- The lease ---------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_bridge_that_was_paused_for_longer_than_its_lease_delivers_nothing_twice_when_it_wakes_up(
    system: Stack,
):
    bridges = [system.start("runbridge") for _ in range(2)]
    async with Conversation.of(system, seed=2) as conversation:
        for _ in range(2):
            paused = leader(bridges)
            talking = asyncio.create_task(conversation.keep_talking(200))
            await asyncio.sleep(0.1)
            paused.signal(SIGSTOP)
            try:
                await eventually(lambda paused=paused: leader(bridges) is not paused)
                await talking
                await asyncio.sleep(LEASE_SECONDS / 4)
            finally:
                paused.signal(SIGCONT)
            await conversation.keep_talking(100)
        await conversation.assert_all_got_everything_once_and_in_order()


async def test_published_without_an_id_is_delivered_by_one_of_the_bridges(system: Stack):
    thread = unique("th")
    for _ in range(3):
        system.start("runbridge")
    async with system.client("hub") as client:
        await client.call("join:thread", {"thread_id": thread})
        for number in range(100):
            system.publish("thread:message", {"thread_id": thread, "message_id": number})
        await client.expect("thread:message", message_id="99")
        ids = [frame["data"]["message_id"] for frame in client.received("thread:message")]
        assert ids == [str(number) for number in range(100)]


# --- Far behind, and full ----------------------------------------------------------------------------


async def test_first_bridge_ever_delivers_everything_there_is_before_it_is_ready(system: Stack):
    async with Conversation.of(system, seed=3) as conversation:
        conversation.say(3000)
        await asyncio.to_thread(system.start, "runbridge")
        assert (
            system.redis.hget(system.key("cursors"), system.key("stream"))
            == system.redis.xinfo_stream(system.key("stream"))["last-generated-id"]
        )
        conversation.say(100)
        await conversation.assert_all_got_everything_once_and_in_order()


@pytest.mark.slow
async def test_what_was_said_while_no_bridge_ran_is_delivered_by_the_next(system: Stack):
    async with Conversation.of(system, seed=4) as conversation:
        for _ in range(3):
            conversation.say(300)
            bridge = await asyncio.to_thread(system.start, "runbridge", ready="delivering")
            conversation.say(300)
            bridge.stop(SIGKILL)
        system.start("runbridge", ready="")
        await conversation.assert_all_got_everything_once_and_in_order()


def leave_memory(redis: Redis, more: int) -> None:
    """So many bytes more than there are now; less than none: Redis is full."""
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] + more)


@pytest.mark.slow
async def test_redis_that_is_full_for_a_while_loses_nothing_that_it_took(
    system: Stack, server: EmbeddedRedis
):
    bridge = system.start("runbridge")
    async with Conversation.of(system, seed=5) as conversation:
        conversation.say(100)
        bridge.signal(SIGSTOP)
        conversation.say(700)
        leave_memory(system.redis, -100_000)
        bridge.signal(SIGCONT)
        await eventually(lambda: "OutOfMemory" in bridge.output)
        leave_memory(system.redis, 100_000_000)
        conversation.say(100)
        await conversation.assert_all_got_everything_once_and_in_order()


@pytest.mark.slow
async def test_redis_that_is_full_of_what_was_delivered_long_ago_gets_room_again(system: Stack):
    bridge = system.start("runbridge")  # and has trimmed for the first time; the next time is a minute away
    stream = system.key("stream")
    long_ago = int((system.redis.time()[0] - KEEP_SECONDS - 100) * 1000)
    for n in range(1000):
        system.redis.xadd(stream, {"message": "x" * 5000}, id=f"{long_ago + n}-0")
    async with Conversation.of(system, seed=6) as conversation:
        conversation.say(10)
        await conversation.assert_all_got_everything_once_and_in_order()
        leave_memory(system.redis, -1_000_000)
        await eventually(lambda: "OutOfMemory" in bridge.output)
        await eventually(lambda: system.redis.xlen(stream) < 500)
        conversation.say(10)
        await conversation.assert_all_got_everything_once_and_in_order()
