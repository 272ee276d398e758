"""One call never does more than its share, and many calls do together what one would."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from redis.exceptions import ResponseError

from presence import store
from presence.store import LeaseLost
from presence.sweeper import Sweeper
from presence.tracker import BATCH_BYTES, PresenceTracker, Presentee
from realtime.redis.client import client
from tests.inprocess import eventually

from .world import World

SHARE = 10


@pytest.fixture
def world(process: str, monkeypatch) -> World:
    monkeypatch.setattr(store, "WORK", SHARE)
    return World()


def connections(world: World) -> int:
    return int(world.redis.hlen(f"{world.base}:connections"))  # type: ignore[arg-type]


def expire(world: World, *nodes: str) -> int:
    """The processes are dead from now on; nothing is judged yet."""
    ended = world.now - 5_000
    world.redis.zadd(f"{world.base}:nodes", dict.fromkeys(nodes, ended), xx=True)
    return ended


def sweep_counting(world: World) -> list[int]:
    """Sweep until nothing is due; how many connections each call took off."""
    taken, more = [], True
    while more:
        before = connections(world)
        more = world.sweep_once().more
        taken.append(before - connections(world))
    return taken


# --- Dead processes ----------------------------------------------------------------------------------


def test_one_call_takes_off_no_more_connections_than_its_share(world: World):
    for node in ("node-1", "node-2"):
        for number in range(35):
            world.connect(f"{node}-{number}", f"{node}-tab-{number}", node=node)
    world.transitions()
    expire(world, "node-1", "node-2")
    taken = sweep_counting(world)
    assert sum(taken) == 70
    assert max(taken) <= SHARE
    assert world.news() == []
    assert world.redis.zcard(f"{world.base}:nodes") == 0
    assert not list(world.redis.scan_iter(f"{world.base}:node:*"))


def test_everybody_of_a_dead_process_is_announced_offline_once(world: World):
    for number in range(35):
        world.connect(f"user-{number}", f"tab-{number}")
    ended = expire(world, "node-1")
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


def test_user_of_two_dead_processes_leaves_no_group_before_the_grace_period(world: World):
    for number in range(35):
        world.connect(f"user-{number}", f"tab-{number}", node="node-1", groups=("sales",))
        world.connect(f"user-{number}", f"other-{number}", node="node-2", groups=("support",))
    world.transitions()
    expire(world, "node-1", "node-2")
    assert sum(sweep_counting(world)) == 70
    assert world.news() == []
    assert len(store.snapshot_sync("sales")) == len(store.snapshot_sync("support")) == 35


def test_user_who_keeps_a_connection_leaves_the_groups_of_the_dead_process_once(world: World):
    for number in range(35):
        world.connect(f"user-{number}", f"tab-{number}", node="node-1", groups=("sales", "all"))
        world.connect(f"user-{number}", f"other-{number}", node="node-2", groups=("support", "all"))
    world.transitions()
    expire(world, "node-1")
    assert sum(sweep_counting(world)) == 35
    entries = world.transitions()
    assert Counter(entry["user_id"] for entry in entries) == {f"user-{number}": 1 for number in range(35)}
    assert all(entry["lost"] == ["sales"] and entry["gained"] == [] for entry in entries)


def test_process_that_comes_back_while_it_is_taken_off_registers_again(world: World):
    node = "node-1"
    for number in range(35):
        world.connect(f"user-{number}", f"tab-{number}", node=node)
    world.transitions()
    expire(world, node)
    assert world.sweep_once().more
    with pytest.raises(LeaseLost):
        world.apply_once({"does": "heartbeat", "user": "user-0"}, node=node)
    ended = world.redis.zscore(f"{world.base}:nodes", node)
    assert ended is not None
    assert float(str(ended)) < world.now, "a call that was refused renews no lease"
    world.register(node=node)
    for number in range(35):
        world.connect(f"user-{number}", f"tab-{number}", node=node)
    assert not any(sweep_counting(world))
    assert connections(world) == 35
    assert world.news() == []
    assert all(world.deadline("grace", f"user-{number}") is None for number in range(35))


def test_deadlines_do_not_wait_for_dead_processes(world: World):
    world.connect("silent", "tab", node="node-2")
    for number in range(35):
        world.connect(f"user-{number}", f"tab-{number}", node="node-1")
    world.transitions()
    expire(world, "node-1")
    world.redis.zadd(f"{world.base}:deadlines", {"away|silent": world.now - 1})
    assert world.sweep_once().more
    assert world.news() == [("online", "away", "timeout")]


async def test_sweeper_goes_on_until_nothing_is_due(world: World):
    for number in range(35):
        world.connect(f"user-{number}", f"tab-{number}")
    expire(world, "node-1")
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


# --- What processes tell -----------------------------------------------------------------------------


async def test_operations_that_were_too_much_for_one_call_are_done_by_the_next(world: World):
    node = PresenceTracker.current()
    for number in range(2 * SHARE):
        await node.connect(Presentee(f"tab-{number}", "ana", "Ana", ("attendants",)))
    for number in range(2 * SHARE - 1):
        node.disconnect(f"tab-{number}")
    await eventually(lambda: connections(world) == 1)
    assert world.news() == [("offline", "online", "connect")]


def test_call_says_how_many_operations_it_did(world: World):
    world.connect()
    for number in range(2 * SHARE):
        world.connect(connection=f"more-{number}")
    operation = {"does": "disconnect", "connection": "tab-1"}
    assert len(world.apply(*[operation] * 5, {"does": "heartbeat", "user": "ana"})) < 6
    assert len(store.apply_sync([{"does": "heartbeat", "user": "ana"}] * 30)) == 30


async def test_calls_are_bounded_in_bytes(world: World, monkeypatch):
    sizes: list[int] = []
    call = store._call

    def measured(*args: Any, **kwargs: Any) -> bytes:
        sizes.append(len(call(*args, **kwargs)))
        return call(*args, **kwargs)

    monkeypatch.setattr(store, "WORK", 1000)
    monkeypatch.setattr(store, "_call", measured)
    node, name = PresenceTracker.current(), "n" * (BATCH_BYTES // 8)
    waiting = [node.connect(Presentee(f"tab-{n}", f"user-{n}", name, ("attendants",))) for n in range(20)]
    for arrival in [eventually(lambda: connections(world) == 20), *waiting][::-1]:
        await arrival
    for number in range(20):
        node.regroup(Presentee(f"tab-{number}", f"user-{number}", name, (f"group-{number}" * 4000,)))
    await eventually(lambda: not node._pending)
    assert max(sizes) < BATCH_BYTES + 2000


async def test_connections_that_redis_still_knows_and_the_process_not_are_taken_off(world: World):
    node = PresenceTracker.current()
    await node.connect(Presentee("tab-1", "ana", "Ana", ("attendants",)))
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
        old = f'{{"node":"{node.registry.id}","user":"user-{number}","groups":[]}}'
        world.redis.hset(f"{world.base}:connections", f"old-{number}", old)
        world.redis.sadd(f"{world.base}:node:{node.registry.id}", f"old-{number}")
    world.redis.hdel(f"{world.base}:calls", node.registry.id)
    node._wake.set()
    await eventually(lambda: connections(world) == 1)
    assert world.redis.smembers(f"{world.base}:node:{node.registry.id}") == {b"tab-1"}


async def test_registration_that_was_interrupted_is_begun_again(world: World, monkeypatch):
    node = PresenceTracker.current()
    for number in range(35):
        await node.connect(Presentee(f"tab-{number}", f"user-{number}", "", ("attendants",)))
    world.transitions()
    world.lose_everything()
    apply, calls = store.apply, 0

    async def fail_in_between(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += kwargs["register"]
        if calls == 3:
            calls += 1
            raise ResponseError("LOADING Redis is loading the dataset in memory")
        return await apply(*args, **kwargs)

    monkeypatch.setattr(store, "apply", fail_in_between)
    node._wake.set()
    await eventually(lambda: len(store.snapshot_sync("attendants")) == 35)
    assert calls > 4
    assert world.news() == []


async def test_user_who_was_told_offline_while_the_process_was_cut_off_is_registered_again(world: World):
    from realtime.layers.signals import PresenceChanged

    node = PresenceTracker.current()
    await node.connect(Presentee("tab-1", "ana", "Ana", ("attendants",)))
    expire(world, node.registry.id)
    world.sweep()
    world.end_grace()
    node._remember(PresenceChanged(user_id="ana", status="offline", chosen=False, since=float(world.now)))
    node._wake.set()
    await eventually(lambda: world.status() == "online")
    assert "ana" in node._states


# --- An operation that can't be done -----------------------------------------------------------------


async def test_operation_that_fails_in_lua_does_not_take_the_others_with_it(world: World, caplog):
    node = PresenceTracker.current()
    await node.connect(Presentee("tab-1", "ana", "Ana", ("attendants",)))
    world.redis.hset(f"{world.base}:connections", "odd", "no JSON")
    world.redis.sadd(f"{world.base}:open:bob", "odd")
    for number in range(20):
        node.heartbeat(f"user-{number}")
    node.disconnect("tab-1")
    with pytest.raises(ResponseError):
        await node.connect(Presentee("tab-2", "bob", "Bob", ("attendants",)))
    await node.connect(Presentee("tab-3", "cleo", "Cleo", ("attendants",)))
    assert world.deadline("grace") is not None
    await eventually(lambda: not node._pending)
    assert "left out" in caplog.text


async def test_operation_that_cannot_be_encoded_fails_alone(world: World):
    node = PresenceTracker.current()
    with pytest.raises(UnicodeEncodeError):
        await node.connect(Presentee("tab-1", "ana", "\ud800", ("attendants",)))
    await node.connect(Presentee("tab-2", "bob", "Bob", ("attendants",)))
    assert world.status("bob") == "online"


async def test_heartbeats_of_an_outage_are_told_once_each(world: World, monkeypatch):
    node = PresenceTracker.current()
    await node.connect(Presentee("tab-1", "ana", "Ana", ("attendants",)))
    failures = 0

    async def down(*args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        failures += 1
        raise ResponseError("LOADING")

    with monkeypatch.context() as patch:
        patch.setattr(store, "apply", down)
        for _ in range(3):
            node.heartbeat("ana")
            node._wake.set()
            before = failures
            await eventually(lambda before=before: failures > before)
        assert len(node._pending) <= 1
    world.silence()
    await eventually(lambda: world.status() == "online")


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
    members = await store.snapshot("attendants")
    assert {member["user_id"] for member in members} == {f"user-{number}" for number in range(600)}
    assert len(members) == 600
    assert largest < 100
    assert members == store.snapshot_sync("attendants")
    assert await client().ping()
