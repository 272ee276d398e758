from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisDown
from redis.exceptions import RedisError

from presence import store
from presence.tracker import PresenceTracker, Presentee
from realtime.layers.signals import PresenceChanged
from tests.inprocess import PATIENCE, connected, eventually

from .world import World


@pytest.fixture
def world(process: str) -> World:
    return World()


@pytest.fixture
async def node(world: World) -> PresenceTracker:
    return PresenceTracker.current()


def ana(connection: str = "tab-1", *groups: str, name: str = "Ana") -> Presentee:
    return Presentee(connection_id=connection, user_id="ana", name=name, groups=groups or ("attendants",))


class Outage:
    """Redis is down while the block runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.calls = 0

    def __enter__(self) -> Outage:
        self.context = self.monkeypatch.context()
        patch = self.context.__enter__()

        async def down(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            raise RedisDown("gone")

        patch.setattr(store, "apply", down)
        return self

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)


# --- Telling Redis -----------------------------------------------------------------------------------


async def test_loop_has_one_presence_node(node: PresenceTracker):
    assert PresenceTracker.current() is node


async def test_connection_is_announced_when_connect_returns(node: PresenceTracker, world: World):
    await node.connect(ana())
    assert world.news() == [("offline", "online", "connect")]


async def test_loss_starts_the_grace_period(node: PresenceTracker, world: World):
    await node.connect(ana())
    node.disconnect("tab-1")
    await eventually(lambda: world.deadline("grace") is not None)


async def test_loss_of_an_unlisted_connection_is_not_told(node: PresenceTracker, world: World):
    node.disconnect("never-seen")
    assert node._runner is None


async def test_logout_is_offline_when_it_returns(node: PresenceTracker, world: World):
    await node.connect(ana())
    await node.logout("tab-1")
    assert world.status() is None
    node.disconnect("tab-1")
    await asyncio.sleep(0.05)
    assert world.news() == [("offline", "online", "connect"), ("online", "offline", "logout")]


async def test_logout_of_an_unlisted_connection_does_nothing(node: PresenceTracker):
    await node.logout("never-seen")
    assert node._runner is None


async def test_choice_is_announced_when_choose_returns(node: PresenceTracker, world: World):
    await node.connect(ana())
    await node.choose("ana", "away")
    assert world.status() == "away"


async def test_heartbeats_are_told_with_the_next_batch(node: PresenceTracker, world: World, settings):
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 0.4}
    await node.connect(ana())
    world.silence()
    node.heartbeat("ana")
    await eventually(lambda: world.status() == "online")


async def test_any_frame_keeps_the_record(node: PresenceTracker, world: World, settings):
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 0.4, "PRESENCE_TTL": 8}
    await node.connect(ana())
    record = f"{store.base()}:user:ana"
    world.redis.pexpire(record, 60_000)
    node.seen("ana")
    await eventually(lambda: world.redis.pttl(record) <= 8_000)


async def test_thousands_of_connections_at_once_take_few_calls(
    node: PresenceTracker, world: World, monkeypatch
):
    calls = 0
    apply = store.apply

    async def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return await apply(*args, **kwargs)

    monkeypatch.setattr(store, "apply", counting)
    await asyncio.gather(
        *(node.connect(Presentee(f"tab-{n}", f"user-{n}", "", ("attendants",))) for n in range(1200))
    )
    assert len(store.snapshot_sync("attendants")) == 1200
    assert calls <= 8


async def test_lease_is_renewed_with_nothing_to_tell(node: PresenceTracker, world: World, settings):
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 2}
    await node.connect(ana())

    def lease() -> float:
        end: Any = world.redis.zscore(f"{store.base()}:nodes", node.registry.id)
        return end or 0.0

    for _ in range(3):
        before = lease()
        await eventually(lambda before=before: lease() > before)
    assert world.deadline("grace") is None


async def test_process_that_stops_leaves_its_users_in_grace_and_no_lease(node: PresenceTracker, world: World):
    await node.connect(ana())
    node.disconnect("tab-1")
    await node.close()
    assert world.deadline("grace") is not None
    assert world.redis.zcard(f"{store.base()}:nodes") == 0


async def test_process_that_never_listed_anybody_has_nothing_to_close(node: PresenceTracker, world: World):
    await node.close()
    assert world.redis.exists(f"{store.base()}:epoch") == 0


async def test_process_stops_even_if_the_cancellation_was_swallowed(node: PresenceTracker, monkeypatch):
    """Python 3.11's `asyncio.wait_for`, with which redis-py sends, can do that."""
    await node.connect(ana())
    asked = asyncio.Event()
    flush = node._flush

    async def swallow() -> None:
        asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await flush()

    monkeypatch.setattr(node, "_flush", swallow)
    node.disconnect("tab-1")
    await asked.wait()
    monkeypatch.setattr(node, "_flush", flush)
    await asyncio.wait_for(node.close(), PATIENCE)


# --- Redis that is down ------------------------------------------------------------------------------


async def test_connection_that_cannot_be_told_is_refused(node: PresenceTracker, world: World, monkeypatch):
    with Outage(monkeypatch), pytest.raises(RedisError):
        await node.connect(ana())


async def test_loss_during_an_outage_is_told_afterwards(
    node: PresenceTracker, world: World, monkeypatch, settings
):
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 0.4}
    await node.connect(ana())
    with Outage(monkeypatch) as outage:
        node.disconnect("tab-1")
        await eventually(lambda: outage.calls)
        assert world.deadline("grace") is None
    await eventually(lambda: world.deadline("grace") is not None)


async def test_connection_whose_answer_got_lost_does_not_stay(
    node: PresenceTracker, world: World, monkeypatch, settings
):
    """Redis did it, we never heard: the handshake is refused, so the connection must go again."""
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 0.4}
    await node.connect(Presentee("tab-0", "bob", "", ()))
    apply = store.apply

    async def lose_the_answer(*args: Any, **kwargs: Any) -> Any:
        await apply(*args, **kwargs)
        monkeypatch.setattr(store, "apply", apply)
        raise RedisDown("answer lost")

    monkeypatch.setattr(store, "apply", lose_the_answer)
    with pytest.raises(RedisError):
        await node.connect(ana())
    await eventually(lambda: world.deadline("grace") is not None)


async def test_waiting_caller_is_told_when_the_process_stops(node: PresenceTracker, monkeypatch):
    await node.connect(ana())
    asked = asyncio.Event()

    async def hang(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        await asyncio.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(store, "apply", hang)
        choosing = asyncio.create_task(node.choose("ana", "away"))
        await asked.wait()
        assert node._runner is not None
        node._runner.cancel()
        with pytest.raises(RedisError, match="interrupted"):
            await choosing


async def test_caller_that_went_away_does_not_disturb_the_others(node: PresenceTracker, world: World):
    impatient = asyncio.create_task(node.connect(ana("tab-1")))
    await asyncio.sleep(0)
    patient = asyncio.create_task(node.connect(Presentee("tab-2", "bob", "Bob", ("attendants",))))
    impatient.cancel()
    await patient
    assert world.status("bob") == "online"
    await eventually(lambda: world.deadline("grace") is not None)


# --- Registering again -------------------------------------------------------------------------------


async def test_process_whose_lease_ended_registers_again_and_nobody_notices(
    node: PresenceTracker, world: World
):
    await node.connect(ana())
    await node.choose("ana", "away")
    world.transitions()
    world.kill(node.registry.id)
    assert world.deadline("grace") is not None
    node._wake.set()
    await eventually(lambda: world.deadline("grace") is None)
    assert world.news() == []
    assert world.status() == "away"


async def test_user_who_was_taken_offline_meanwhile_comes_online_anew(node: PresenceTracker, world: World):
    await node.connect(ana())
    world.kill(node.registry.id)
    world.end_grace()
    world.transitions()
    node._wake.set()
    await eventually(lambda: world.status() == "online")
    assert world.news() == [("offline", "online", "connect")]


async def test_nobody_flaps_when_redis_comes_back_empty(node: PresenceTracker, world: World):
    await node.connect(ana())
    await node.connect(Presentee("tab-2", "bob", "Bob", ("sales",)))
    await node.choose("ana", "away")
    since = node._states["ana"].since
    world.transitions()
    world.lose_everything()
    node._wake.set()
    await eventually(lambda: world.status() == "away")
    assert world.status("bob", "sales") == "online"
    assert world.news() == []
    state = world.heartbeat()
    assert state == store.State("away", True, since)


async def test_user_in_grace_when_redis_comes_back_empty_gets_its_grace(node: PresenceTracker, world: World):
    await node.connect(ana())
    await node.connect(Presentee("tab-2", "bob", "Bob", ("sales",)))
    node.disconnect("tab-1")
    await eventually(lambda: world.deadline("grace") is not None)
    world.transitions()
    world.lose_everything()
    node._wake.set()
    await eventually(lambda: world.deadline("grace") is not None)
    assert world.status() == "online"
    assert world.news() == []
    world.end_grace()
    assert world.news() == [("online", "offline", "reset")]


async def test_user_who_went_offline_before_redis_lost_everything_stays_so(
    node: PresenceTracker, world: World
):
    await node.connect(ana())
    await node.connect(Presentee("tab-2", "bob", "Bob", ("sales",)))
    node.disconnect("tab-1")
    await eventually(lambda: world.deadline("grace") is not None)
    world.end_grace()
    node._remember(PresenceChanged(user_id="ana", status="offline", chosen=False, since=1.0))
    world.lose_everything()
    node._wake.set()
    await eventually(lambda: world.status("bob", "sales"))
    assert world.status() is None


async def test_user_who_logged_out_is_not_put_into_grace_when_redis_comes_back_empty(
    node: PresenceTracker, world: World
):
    await node.connect(ana())
    await node.connect(Presentee("tab-2", "bob", "Bob", ("sales",)))
    await node.logout("tab-1")
    world.lose_everything()
    node._wake.set()
    await eventually(lambda: world.status("bob", "sales"))
    assert world.status() is None
    assert world.deadline("grace") is None


async def test_who_connects_to_an_empty_redis_is_announced_and_the_others_are_not(
    node: PresenceTracker, world: World
):
    await node.connect(ana())
    world.transitions()
    world.lose_everything()
    await node.connect(Presentee("tab-2", "bob", "Bob", ("attendants",)))
    entries = world.transitions()
    assert [(entry["user_id"], entry["to"]) for entry in entries] == [("bob", "online")]
    assert world.status("ana") == "online"


# --- What others do ----------------------------------------------------------------------------------


async def test_what_redis_lost_last_is_told_again(node: PresenceTracker, world: World):
    await node.connect(ana())
    await node.connect(Presentee("tab-2", "bob", "Bob", ("sales",)))
    before = world.keys()
    await node.choose("ana", "away")
    await node.connect(Presentee("tab-3", "cleo", "Cleo", ("sales",)))
    node.disconnect("tab-2")
    await eventually(lambda: world.deadline("grace", "bob") is not None)
    world.set_back(before)
    assert (world.status(), world.status("cleo", "sales")) == ("online", None)
    node._wake.set()
    await eventually(lambda: world.status("cleo", "sales") == "online")
    assert world.status() == "away"
    assert world.deadline("grace", "bob") is not None


async def test_redis_that_knows_more_than_it_could_answer_has_lost_nothing(
    node: PresenceTracker, world: World, monkeypatch
):
    await node.connect(ana())
    apply = store.apply

    async def lose_the_answer(*args: Any, **kwargs: Any) -> Any:
        await apply(*args, **kwargs)
        monkeypatch.setattr(store, "apply", apply)
        raise RedisDown("answer lost")

    monkeypatch.setattr(store, "apply", lose_the_answer)
    monkeypatch.setattr(node, "_register", None)  # would fail if it were called
    with pytest.raises(RedisError):
        await node.choose("ana", "away")
    await node.choose("ana", "online")


async def test_change_made_elsewhere_is_remembered_for_a_restart_of_redis(
    node: PresenceTracker, world: World
):
    await node.connect(ana())
    node._remember(PresenceChanged(user_id="ana", status="away", chosen=True, since=1500.0))
    world.transitions()
    world.lose_everything()
    node._wake.set()
    await eventually(lambda: world.status() == "away")
    assert world.heartbeat() == store.State("away", True, 1500)
    assert world.news() == []


async def test_users_of_other_processes_are_not_remembered(node: PresenceTracker):
    node._remember(PresenceChanged(user_id="bob", status="away", chosen=True, since=1500.0))
    assert "bob" not in node._states


# --- Snapshots ---------------------------------------------------------------------------------------


async def test_snapshot_holds_oneself(node: PresenceTracker):
    await node.connect(ana())
    assert [member["user_id"] for member in await node.snapshot("attendants")] == ["ana"]


async def test_many_who_ask_at_once_share_a_snapshot_that_sees_all_of_them(
    node: PresenceTracker, monkeypatch
):
    reads = 0
    snapshot = store.snapshot

    async def counting(*args: Any) -> Any:
        nonlocal reads
        reads += 1
        return await snapshot(*args)

    monkeypatch.setattr(store, "snapshot", counting)

    async def arrive(n: int) -> set[str]:
        await asyncio.sleep(n / 1000)
        await node.connect(Presentee(f"tab-{n}", f"user-{n}", "", ("attendants",)))
        return {member["user_id"] for member in await node.snapshot("attendants")}

    seen = await asyncio.gather(*(arrive(n) for n in range(100)))
    assert all(f"user-{n}" in members for n, members in enumerate(seen))
    assert reads <= 4


async def test_failed_snapshot_is_said_to_who_asked_and_not_to_who_asks_next(
    node: PresenceTracker, monkeypatch
):
    async def down(*args: Any) -> Any:
        raise RedisDown("gone")

    with monkeypatch.context() as patch:
        patch.setattr(store, "snapshot", down)
        with pytest.raises(RedisError):
            await node.snapshot("attendants")
    assert await node.snapshot("attendants") == []


# --- A record that Redis has lost ----------------------------------------------------------------------


async def test_choice_that_redis_did_not_take_is_not_confirmed(node: PresenceTracker, world: World):
    with pytest.raises(RedisError):
        await node.choose("ana", "away")


async def test_chosen_status_survives_the_loss_of_its_record(node: PresenceTracker, world: World):
    async with connected(user_id="ana") as client:
        await client.call("presence:away")
        world.transitions()
        world.redis.delete(f"{store.base()}:user:ana")
        await client.call("heartbeat")
        await eventually(lambda: world.status() == "away")
        assert [(t["from"], t["to"], t["gained"]) for t in world.transitions()] == [
            ("away", "away", ["attendants"])
        ]
