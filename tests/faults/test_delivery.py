"""Something breaks while people are connected and the backbone writes. What may they see of it?

docs/reliability.md is this file in prose.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

import pytest

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import eventually
from tests.faults.proxy import Proxy, to_port, to_socket
from tests.faults.world import GRACE, LEASE, World

Break = Callable[[World], Awaitable[None]]


async def restart_sockets(world: World, number: int) -> None:
    world.sockets[number] = await asyncio.to_thread(world.stack.start_sockets, world.ports[number])


# --- Clients see nothing but a reconnect ------------------------------------------------------------


async def socket_server_is_killed(world: World) -> None:
    world.sockets[0].signal(SIGKILL)
    await asyncio.sleep(0.5)
    await restart_sockets(world, 0)


async def socket_servers_are_restarted_one_by_one(world: World) -> None:
    for number, process in enumerate(world.sockets):
        process.signal(SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
        await restart_sockets(world, number)
        await world.all_are_present()


async def bridges_are_killed_in_turn(world: World) -> None:
    for _ in range(3):
        world.bridges.pop(0).signal(SIGKILL)
        world.bridges.append(await asyncio.to_thread(world.stack.start, "runbridge"))


async def all_bridges_are_down_for_a_while(world: World) -> None:
    for bridge in world.bridges:
        bridge.signal(SIGKILL)
    await asyncio.sleep(1)
    world.bridges = [await asyncio.to_thread(world.stack.start, "runbridge")]


async def subscriptions_are_cut(world: World) -> None:
    for _ in range(3):
        world.stack.redis.client_kill_filter(_type="pubsub")
        await asyncio.sleep(0.5)


async def every_redis_connection_is_cut(world: World) -> None:
    for _ in range(3):
        world.stack.redis.client_kill_filter(skipme=True)
        await asyncio.sleep(0.4)


async def redis_stands_still(world: World) -> None:
    """For longer than lease and grace period."""
    assert world.server.process is not None
    world.server.process.send_signal(SIGSTOP)
    await asyncio.sleep(LEASE + GRACE + 0.5)
    world.server.process.send_signal(SIGCONT)


async def redis_restarts_with_everything(world: World) -> None:
    world.stack.redis.config_set("save", "3600 1")  # then it saves when it is asked to end
    await asyncio.to_thread(world.server.stop, SIGTERM)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(world.server.start)


async def redis_is_full(world: World) -> None:
    used = world.stack.redis.info("memory")["used_memory"]
    world.stack.redis.config_set("maxmemory", used - 100_000)
    await asyncio.sleep(1.5)
    world.stack.redis.config_set("maxmemory", 0)


async def clients_drop_again_and_again(world: World) -> None:
    for _ in range(6):
        for person in random.sample(world.people, 3):
            person.drop()
        await asyncio.sleep(0.4)


async def event_loop_stalls(world: World) -> None:
    """A socket server does nothing for longer than its lease."""
    world.sockets[0].signal(SIGSTOP)
    await asyncio.sleep(LEASE * 2.5)
    world.sockets[0].signal(SIGCONT)


HARMLESS: dict[str, list[Break]] = {
    "processes": [
        socket_server_is_killed,
        socket_servers_are_restarted_one_by_one,
        bridges_are_killed_in_turn,
        all_bridges_are_down_for_a_while,
        clients_drop_again_and_again,
        event_loop_stalls,
    ],
    "redis": [
        subscriptions_are_cut,
        every_redis_connection_is_cut,
        redis_stands_still,
        redis_restarts_with_everything,
        redis_is_full,
    ],
}


@pytest.mark.parametrize("of", HARMLESS)
async def test_nothing_is_lost_or_doubled_and_no_presence_flaps(world: World, of: str, record_property):
    """The same people live through one fault after the other; nothing of any is left when they have gone."""
    await asyncio.to_thread(world.start)
    await world.gather()
    for breaks in HARMLESS[of]:
        async with world.traffic():
            await breaks(world)
        await world.nothing_happened(record_property, breaks.__name__)
        await world.presence_is_true()
        world.forget()
    await world.part()


# --- Redis itself loses something: then it is said ----------------------------------------------------


async def redis_is_wiped(world: World) -> None:
    world.stack.redis.flushall()


async def redis_restarts_empty(world: World) -> None:
    await asyncio.to_thread(world.server.stop, SIGKILL)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(world.server.start)


async def redis_comes_back_as_it_was_a_while_ago(world: World) -> None:
    world.stack.redis.save()
    await world.all_hear()  # now there is something that was not saved
    await asyncio.to_thread(world.server.stop, SIGKILL)
    await asyncio.to_thread(world.server.start)


LOSES: list[Break] = [redis_is_wiped, redis_restarts_empty, redis_comes_back_as_it_was_a_while_ago]


async def test_client_that_may_have_missed_something_is_told(world: World, record_property):
    await asyncio.to_thread(world.start)
    await world.gather()
    for breaks in LOSES:
        async with world.traffic():
            await world.all_hear()  # a room in which nothing was written loses nothing
            await breaks(world)
        account = await world.nothing_was_hidden(record_property, breaks.__name__)
        assert account.gaps > 0, breaks.__name__
        await world.presence_is_true()
        world.forget()
    await world.part()


# --- Networks -------------------------------------------------------------------------------------------


async def test_slow_redis_makes_everything_late_and_nothing_else(world: World, record_property):
    async with Proxy(to_socket(world.server.socket)) as network:
        network.delay = 0.05
        slow = {"REDIS_URL": f"redis://127.0.0.1:{network.port}/0"}
        await asyncio.to_thread(world.start, **slow)
        await world.gather()
        async with world.traffic(after=2):
            network.delay = 0.15
            await asyncio.sleep(1.5)
            network.delay = 0.05
        await world.nothing_happened(record_property)
        await world.presence_is_true()
        await world.part()


async def test_redis_that_vanishes_without_a_word_is_noticed(world: World, record_property):
    """The connections stay open, and nothing comes through them any more; new ones work."""
    world.stack.env["REALTIME_GRACE_PERIOD"] = "20"  # longer than it takes to notice
    async with Proxy(to_socket(world.server.socket)) as network:
        way = {"REDIS_URL": f"redis://127.0.0.1:{network.port}/0"}
        await asyncio.to_thread(world.start, **way)
        await world.gather()
        async with world.traffic():
            network.swallow()
            await eventually(lambda: "redis does not answer" in world.stack.logs)
        await world.nothing_happened(record_property)


async def arrived(world: World, count: int) -> bool:
    return await world.stack.connections(world.ports[1]) == count


async def test_client_whose_connection_died_without_a_word_comes_back_and_has_everything(
    world: World, record_property
):
    await asyncio.to_thread(world.start)
    async with Proxy(to_port(world.ports[0])) as network:
        await world.gather([network.port])
        async with world.traffic():
            network.swallow()
            await asyncio.sleep(1)
            # A phone that has moved to another network, while its old connection stays open here.
            for person in world.people:
                person.ports = (world.ports[1],)
                person.move()
            number_of_people = len(world.people)
            await eventually(lambda: arrived(world, number_of_people))
            await world.all_are_present()
            assert await world.stack.connections(world.ports[0]) == number_of_people, (
                "the old ones were ended"
            )
        await world.nothing_happened(record_property)


async def test_reader_at_one_kilobyte_a_second_holds_up_no_other(world: World, record_property):
    await asyncio.to_thread(world.start)
    async with Proxy(to_port(world.ports[0])) as network:
        network.narrow = 1000
        await world.gather(count=3)
        slow = world.people.pop()
        slow.ports = (network.port,)
        slow.drop()
        await asyncio.sleep(1)
        async with world.traffic():
            await asyncio.sleep(1)
        await world.nothing_happened(record_property)
        network.narrow = 0
        world.people.append(slow)
        await world.nothing_happened(record_property)


# --- Clocks ---------------------------------------------------------------------------------------------


def skewed(clock: Path) -> dict[str, str]:
    """The environment of a process whose clock is ahead by what the file says."""
    libraries = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    assert libraries, "needs the Debian package faketime"
    clock.write_text("+0")
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


async def test_clock_of_a_host_that_jumps_matters_to_no_client(world: World, tmp_path: Path, record_property):
    clock = tmp_path / "clock"
    await asyncio.to_thread(world.start, **skewed(clock))
    bridge = await asyncio.to_thread(world.stack.start, "runbridge", **skewed(clock))
    for other in world.bridges:
        other.signal(SIGKILL)
    world.bridges = [bridge]
    await world.gather()
    for seconds in (600, -600):
        async with world.traffic():
            clock.write_text(f"{seconds:+d}")
            await asyncio.sleep(1.5)
        await world.nothing_happened(record_property, f"{seconds:+d} s")


async def test_clock_of_redis_that_jumps_matters_to_no_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property
):
    """Presence knows everyone at once, and not when the next heartbeat comes."""
    clock = tmp_path / "clock"
    with ExitStack() as stack:
        with monkeypatch.context() as patch:
            for name, value in skewed(clock).items():
                patch.setenv(name, value)
            server = stack.enter_context(EmbeddedRedis(tmp_path / "redis"))
        async with World(tmp_path, server) as world:
            for name, seconds in (("HEARTBEAT_INTERVAL", 1000), ("AWAY_AFTER", 2000), ("PRESENCE_TTL", 3000)):
                world.stack.env[f"REALTIME_{name}"] = str(seconds)
            await asyncio.to_thread(world.start)
            await world.gather()
            for seconds in (3600, 0):
                async with world.traffic():
                    clock.write_text(f"{seconds:+d}")
                    await asyncio.sleep(1.5)
                await world.nothing_happened(record_property, f"{seconds:+d} s")
                await world.presence_is_true()
