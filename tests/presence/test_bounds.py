"""One call never does more than its share, and many calls do together what one would."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import AsyncMock

import pytest
from redis.exceptions import ResponseError

from presence import store
from presence.operations import BATCH_BYTES, Presentee
from presence.store import LeaseLost
from presence.sweeper import Sweeper
from presence.tracker import PresenceTracker
from realtime.layers.signals import PresenceChanged
from realtime.redis.client import client
from tests.inprocess import HUB, eventually

from .world import World

SHARE = 10


@pytest.fixture
def world(process: str, monkeypatch) -> World:
    monkeypatch.setattr(store, "WORK", SHARE)
    return World()


def crowd(world: World, tab: str = "tab", **more: Any) -> None:
    for number in range(35):
        world.connect(f"user-{number}", f"{tab}-{number}", **more)


def connections(world: World) -> int:
    return int(world.redis.hlen(f"{world.base}:connections"))  # type: ignore[arg-type]


def expire(world: World, *instances: str) -> int:
    """The processes are dead from now on; nothing is judged yet."""
    ended = world.now - 5_000
    world.redis.zadd(f"{world.base}:nodes", dict.fromkeys(instances, ended), xx=True)
    return ended


def sweep_counting(world: World) -> list[int]:
    """Sweep until nothing is due; how many connections each call took off."""
    taken, more = [], True
    while more:
        before = connections(world)
        more = world.sweep_once().more
        taken.append(before - connections(world))
    return taken


# --- Dead instances ----------------------------------------------------------------------------------


def test_one_call_takes_off_no_more_connections_than_its_share(world: World):
    for instance in ("instance-1", "instance-2"):
        crowd(world, instance, instance=instance)
    world.transitions()
    expire(world, "instance-1", "instance-2")
    taken = sweep_counting(world)
    assert sum(taken) == 70
    assert max(taken) <= SHARE
    assert world.news() == []
    assert world.redis.zcard(f"{world.base}:nodes") == 0
    assert not list(world.redis.scan_iter(f"{world.base}:node:*"))


def test_each_user_of_a_dead_instance_is_announced_offline_once(world: World):
    crowd(world)
    ended = expire(world, "instance-1")
    sweep_counting(world)
    world.transitions()
    deadlines = f"{world.base}:deadlines"
    assert {score for _, score in world.redis.zscan_iter(deadlines)} == {ended + 60_000}
    for member, _ in list(world.redis.zscan_iter(deadlines)):
        world.redis.zadd(deadlines, {member: world.now - 1})
    calls, more = 0, True
    while more:
        swept = world.sweep_once()
        assert swept.changed <= SHARE
        calls, more = calls + 1, swept.more
    assert calls > 3
    offline = Counter((entry["user_id"], entry["to"]) for entry in world.transitions())
    assert offline == {(f"user-{number}", "offline"): 1 for number in range(35)}


def test_groups_count_as_work_when_their_user_goes_offline(world: World):
    groups = tuple(f"group-{number}" for number in range(SHARE))
    for number in range(3):
        world.connect(f"user-{number}", f"tab-{number}", groups=groups)
        world.disconnect(f"tab-{number}")
        world.redis.zadd(f"{world.base}:deadlines", {f"grace|user-{number}": world.now - 1})
    assert [world.sweep_once().changed for _ in range(3)] == [1, 1, 1]


def test_user_of_two_dead_instances_leaves_no_group_before_the_grace_period(world: World):
    crowd(world, groups=("sales",))
    crowd(world, "other", instance="instance-2", groups=("support",))
    world.transitions()
    expire(world, "instance-1", "instance-2")
    assert sum(sweep_counting(world)) == 70
    assert world.news() == []
    assert len(store.snapshot_sync(HUB, "sales")) == len(store.snapshot_sync(HUB, "support")) == 35


def test_user_who_keeps_a_connection_leaves_the_groups_of_the_dead_instance_once(world: World):
    crowd(world, groups=("sales", "all"))
    crowd(world, "other", instance="instance-2", groups=("support", "all"))
    world.transitions()
    expire(world, "instance-1")
    assert sum(sweep_counting(world)) == 35
    entries = world.transitions()
    assert Counter(entry["user_id"] for entry in entries) == {f"user-{number}": 1 for number in range(35)}
    assert all(entry["lost"] == ["sales"] and entry["gained"] == [] for entry in entries)


def test_instance_that_comes_back_while_it_is_taken_off_registers_again(world: World):
    instance = "instance-1"
    crowd(world)
    world.transitions()
    expire(world, instance)
    assert world.sweep_once().more
    with pytest.raises(LeaseLost):
        world.apply_once({"does": "heartbeat", "user": "user-0"}, instance=instance)
    ended = world.redis.zscore(f"{world.base}:nodes", instance)
    assert ended is not None
    assert float(str(ended)) < world.now, "a call that was refused renews no lease"
    world.register(instance=instance)
    crowd(world)
    assert not any(sweep_counting(world))
    assert connections(world) == 35
    assert world.news() == []
    assert all(world.deadline("grace", f"user-{number}") is None for number in range(35))


def test_deadlines_do_not_wait_for_dead_instances(world: World):
    world.connect("silent", "tab", instance="instance-2")
    crowd(world)
    world.transitions()
    expire(world, "instance-1")
    world.redis.zadd(f"{world.base}:deadlines", {"away|silent": world.now - 1})
    assert world.sweep_once().more
    assert world.news() == [("online", "away", "timeout")]


async def test_sweeper_goes_on_until_nothing_is_due(world: World):
    crowd(world)
    expire(world, "instance-1")
    assert await Sweeper().sweep() == 35
    assert connections(world) == 0


# --- Redis that stood still --------------------------------------------------------------------------


def test_what_is_due_after_a_standstill_is_put_off_by_several_calls_and_not_judged_before(world: World):
    users = [f"user-{number}" for number in range(35 * SHARE)]
    world.redis.zadd(f"{world.base}:deadlines", {f"grace|{user}": world.now - 1 for user in users})
    world.stand_still(30_000)
    calls = 0
    while (swept := world.sweep_once()).more:
        calls += 1
        assert swept.changed == 0
    assert calls == 3
    assert swept.changed == 0
    deadlines = {world.redis.zscore(f"{world.base}:deadlines", f"grace|{user}") for user in users}
    assert len(deadlines) == 1
    assert world.redis.zcount(f"{world.base}:deadlines", "-inf", world.now) == 0


# --- What instances send -----------------------------------------------------------------------------


async def test_operations_that_were_too_much_for_one_call_are_done_by_the_next(world: World):
    tracker = PresenceTracker.current(HUB)
    for number in range(2 * SHARE):
        await tracker.connect(Presentee(f"tab-{number}", "ana", "Ana", ("attendants",)))
    for number in range(2 * SHARE - 1):
        tracker.disconnect(f"tab-{number}")
    await eventually(lambda: connections(world) == 1)
    assert world.news() == [("offline", "online", "connect")]


def test_call_says_how_many_operations_it_did(world: World):
    world.connect()
    for number in range(2 * SHARE):
        world.connect(connection=f"more-{number}")
    operation = {"does": "disconnect", "connection": "tab-1"}
    assert len(world.apply(*[operation] * 5, {"does": "heartbeat", "user": "ana"})) < 6


async def test_calls_are_bounded_in_bytes(world: World, monkeypatch):
    run = AsyncMock(wraps=store.run)
    monkeypatch.setattr(store, "WORK", 1000)
    monkeypatch.setattr(store, "run", run)
    tracker, name = PresenceTracker.current(HUB), "n" * (BATCH_BYTES // 8)
    waiting = [tracker.connect(Presentee(f"tab-{n}", f"user-{n}", name, ("attendants",))) for n in range(20)]
    for arrival in [eventually(lambda: connections(world) == 20), *waiting][::-1]:
        await arrival
    for number in range(20):
        tracker.regroup(Presentee(f"tab-{number}", f"user-{number}", name, (f"group-{number}" * 4000,)))
    await tracker.connect(Presentee("last", "last", "", ()))
    assert max(len(call.args[2][0]) for call in run.await_args_list) < BATCH_BYTES + 2000


async def test_connections_that_redis_still_knows_and_the_instance_not_are_taken_off(world: World):
    tracker = PresenceTracker.current(HUB)
    await tracker.connect(Presentee("tab-1", "ana", "Ana", ("attendants",)))
    for number in range(35):
        world.apply(
            {
                "does": "connect",
                "connection": f"old-{number}",
                "user": f"user-{number}",
                "name": "",
                "groups": [],
            }
        )
        old = f'{{"node":"{tracker.registry.id}","user":"user-{number}","groups":[]}}'
        world.redis.hset(f"{world.base}:connections", f"old-{number}", old)
        world.redis.sadd(f"{world.base}:node:{tracker.registry.id}", f"old-{number}")
    world.redis.hdel(f"{world.base}:calls", tracker.registry.id)
    tracker.regroup(Presentee("tab-1", "ana", "Ana", ("attendants",)))
    await eventually(lambda: connections(world) == 1)
    assert world.redis.smembers(f"{world.base}:node:{tracker.registry.id}") == {b"tab-1"}


async def test_registration_that_was_interrupted_is_begun_again(world: World, monkeypatch):
    tracker = PresenceTracker.current(HUB)
    for number in range(35):
        await tracker.connect(Presentee(f"tab-{number}", f"user-{number}", "", ("attendants",)))
    world.transitions()
    world.lose_everything()
    apply, calls = store.apply, 0

    async def fail_in_between(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += args[2].registers
        if calls == 3:
            calls += 1
            raise ResponseError("LOADING Redis is loading the dataset in memory")
        return await apply(*args, **kwargs)

    monkeypatch.setattr(store, "apply", fail_in_between)
    tracker.regroup(Presentee("tab-0", "user-0", "", ("attendants",)))
    await eventually(lambda: len(store.snapshot_sync(HUB, "attendants")) == 35)
    assert calls > 4
    assert world.news() == []


async def test_user_who_was_told_offline_while_the_instance_was_cut_off_is_registered_again(world: World):
    tracker = PresenceTracker.current(HUB)
    await tracker.connect(Presentee("tab-1", "ana", "Ana", ("attendants",)))
    expire(world, tracker.registry.id)
    world.sweep()
    world.end_grace()
    tracker.on_presence(PresenceChanged("ana", "offline", chosen=False, since=float(world.now)))
    await tracker.choose("ana", "away")
    assert world.status() == "away"


# --- An operation that can't be done -----------------------------------------------------------------


async def test_operation_that_fails_in_lua_does_not_take_the_others_with_it(world: World, caplog):
    tracker = PresenceTracker.current(HUB)
    await tracker.connect(Presentee("tab-1", "ana", "Ana", ("attendants",)))
    world.redis.hset(f"{world.base}:connections", "odd", "no JSON")
    world.redis.sadd(f"{world.base}:open:bob", "odd")
    for number in range(20):
        tracker.heartbeat(f"user-{number}")
    tracker.disconnect("tab-1")
    with pytest.raises(ResponseError):
        await tracker.connect(Presentee("tab-2", "bob", "Bob", ("attendants",)))
    await tracker.connect(Presentee("tab-3", "cleo", "Cleo", ("attendants",)))
    assert world.deadline("grace") is not None
    assert "left out" in caplog.text


async def test_operation_that_cannot_be_encoded_fails_alone(world: World):
    tracker = PresenceTracker.current(HUB)
    with pytest.raises(UnicodeEncodeError):
        await tracker.connect(Presentee("tab-1", "ana", "\ud800", ("attendants",)))
    await tracker.connect(Presentee("tab-2", "bob", "Bob", ("attendants",)))
    assert world.status("bob") == "online"


async def test_heartbeats_of_an_outage_are_told_once_each(world: World, monkeypatch):
    tracker = PresenceTracker.current(HUB)
    await tracker.connect(Presentee("tab-1", "ana", "Ana", ("attendants",)))
    apply, calls, sent = store.apply, 0, 0

    async def down_at_first(namespace: str, operations: Any, caller: Any) -> Any:
        nonlocal calls, sent
        calls += 1
        if calls <= 2:
            tracker.heartbeat("ana")
        if calls <= 3:
            raise ResponseError("LOADING")
        sent += sum(b'"heartbeat"' in bytes(operation) for operation in operations)
        return await apply(namespace, operations, caller)

    world.silence()
    tracker.heartbeat("ana")
    monkeypatch.setattr(store, "apply", down_at_first)
    await eventually(lambda: world.status() == "online")
    assert sent == 1


# --- Snapshots ---------------------------------------------------------------------------------------


async def test_snapshot_of_a_huge_group_is_read_part_by_part(world: World, monkeypatch):
    monkeypatch.setattr(store, "PART", 20)
    monkeypatch.setattr(store, "WORK", 1000)
    for number in range(600):
        world.connect(f"user-{number}", f"tab-{number}")
    largest = 0
    run = store.run

    async def measured(*args: Any) -> Any:
        nonlocal largest
        answer = await run(*args)
        largest = max(largest, len(answer) // 4)
        return answer

    monkeypatch.setattr(store, "run", measured)
    members = await store.snapshot(HUB, "attendants")
    assert {member["user_id"] for member in members} == {f"user-{number}" for number in range(600)}
    assert len(members) == 600
    assert largest < 100
    assert members == store.snapshot_sync(HUB, "attendants")
    assert await client().ping()
