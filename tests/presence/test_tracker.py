from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock

import pytest
from redis.exceptions import ConnectionError as RedisDown
from redis.exceptions import RedisError

from presence import store
from presence.operations import Presentee
from presence.tracker import PresenceTracker
from realtime.layers.signals import PresenceChanged
from tests.inprocess import HUB, PATIENCE, PORTAL, connected, eventually

from .world import World

BOB = Presentee("tab-2", "bob", "Bob", ("sales",))


@pytest.fixture
async def tracker(process: str, world: World) -> PresenceTracker:
    return PresenceTracker.current(HUB)


def ana(connection: str = "tab-1") -> Presentee:
    return Presentee(connection_id=connection, user_id="ana", name="Ana", groups=("attendants",))


def change(tracker: PresenceTracker, status: str, since: float, user: str = "ana") -> None:
    """The bridge signals a change that was made elsewhere."""
    chosen = status == "away"
    tracker.registry.on_presence(PresenceChanged(user_id=user, status=status, chosen=chosen, since=since))


def lose_the_next_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis does what it is asked next, and the answer gets lost."""
    apply = store.apply

    async def lose_the_answer(*args: Any, **kwargs: Any) -> Any:
        await apply(*args, **kwargs)
        monkeypatch.setattr(store, "apply", apply)
        raise RedisDown("answer lost")

    monkeypatch.setattr(store, "apply", lose_the_answer)


# --- Telling Redis -----------------------------------------------------------------------------------


async def test_what_an_unlisted_connection_does_is_not_sent(tracker: PresenceTracker, world: World):
    tracker.disconnect("never-seen")
    tracker.regroup(ana())
    await tracker.logout("never-seen")
    await tracker.close()
    assert world.redis.exists(f"{world.base}:epoch") == 0


async def test_logout_is_offline_when_it_returns(tracker: PresenceTracker, world: World):
    await tracker.connect(ana())
    await tracker.logout("tab-1")
    assert world.status() is None
    tracker.disconnect("tab-1")
    await asyncio.sleep(0.05)
    assert world.news() == [("offline", "online", "connect"), ("online", "offline", "logout")]


async def test_thousands_of_connections_at_once_take_few_calls(
    tracker: PresenceTracker, world: World, monkeypatch
):
    apply = AsyncMock(wraps=store.apply)
    monkeypatch.setattr(store, "apply", apply)
    await asyncio.gather(
        *(tracker.connect(Presentee(f"tab-{n}", f"user-{n}", "", ("attendants",))) for n in range(1200))
    )
    assert len(store.snapshot_sync(HUB, "attendants")) == 1200
    assert apply.await_count <= 8


async def test_lease_is_renewed_with_nothing_to_tell(tracker: PresenceTracker, world: World):
    await tracker.connect(ana())

    def lease() -> float:
        end: Any = world.redis.zscore(f"{store.base(HUB)}:nodes", tracker.registry.id)
        return end or 0.0

    for _ in range(2):
        before = lease()
        await eventually(lambda before=before: lease() > before)


async def test_instance_that_stops_leaves_its_users_in_grace_and_no_lease(
    tracker: PresenceTracker, world: World, caplog
):
    await tracker.connect(ana())
    tracker.disconnect("tab-1")
    for _ in range(2):  # the second time, nothing is left to give back
        await tracker.close()
        assert world.deadline("grace") is not None
        assert world.redis.zcard(f"{store.base(HUB)}:nodes") == 0
    assert "presence registered again" not in caplog.messages


async def test_instance_stops_even_if_the_cancellation_was_swallowed(tracker: PresenceTracker, monkeypatch):
    """Python 3.11's `asyncio.wait_for`, with which redis-py sends, can do that."""
    await tracker.connect(ana())
    asked = asyncio.Event()
    apply = store.apply

    async def swallow(*args: Any) -> Any:
        monkeypatch.setattr(store, "apply", apply)
        asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return await apply(*args)

    monkeypatch.setattr(store, "apply", swallow)
    tracker.disconnect("tab-1")
    await asked.wait()
    await asyncio.wait_for(tracker.close(), PATIENCE)


# --- Redis that is down ------------------------------------------------------------------------------


async def test_loss_during_an_outage_is_recorded_afterwards(
    tracker: PresenceTracker, world: World, monkeypatch
):
    await tracker.connect(ana())
    with monkeypatch.context() as outage:
        outage.setattr(store, "apply", apply := AsyncMock(side_effect=RedisDown("gone")))
        tracker.disconnect("tab-1")
        await eventually(lambda: apply.await_count)
        assert world.deadline("grace") is None
    await eventually(lambda: world.deadline("grace") is not None)


async def test_connection_that_could_not_log_out_can_still_be_lost(
    tracker: PresenceTracker, world: World, monkeypatch
):
    await tracker.connect(ana())
    with monkeypatch.context() as outage:
        outage.setattr(store, "apply", AsyncMock(side_effect=RedisDown("gone")))
        with pytest.raises(RedisError):
            await tracker.logout("tab-1")
    tracker.disconnect("tab-1")
    await eventually(lambda: world.deadline("grace") is not None)


async def test_connection_whose_answer_got_lost_does_not_stay(
    tracker: PresenceTracker, world: World, monkeypatch
):
    """Redis did it, we never heard: the handshake is refused, so the connection must go again."""
    await tracker.connect(BOB)
    lose_the_next_answer(monkeypatch)
    with pytest.raises(RedisError):
        await tracker.connect(ana())
    await eventually(lambda: world.deadline("grace") is not None)


async def test_waiting_caller_gets_an_error_when_the_instance_stops(tracker: PresenceTracker, monkeypatch):
    await tracker.connect(ana())
    asked = asyncio.Event()

    async def hang(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        await asyncio.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(store, "apply", hang)
        choosing = asyncio.create_task(tracker.choose("ana", "away"))
        await asked.wait()
        tracker.cancel()
        with pytest.raises(RedisError, match="interrupted"):
            await choosing


async def test_caller_that_went_away_does_not_disturb_the_others(tracker: PresenceTracker, world: World):
    impatient = asyncio.create_task(tracker.connect(ana("tab-1")))
    await asyncio.sleep(0)
    patient = asyncio.create_task(tracker.connect(Presentee("tab-2", "bob", "Bob", ("attendants",))))
    impatient.cancel()
    await patient
    assert world.status("bob") == "online"
    await eventually(lambda: world.deadline("grace") is not None)


# --- Registering again -------------------------------------------------------------------------------


async def test_instance_whose_lease_ended_registers_again_unnoticed(tracker: PresenceTracker, world: World):
    await tracker.connect(ana())
    await tracker.choose("ana", "away")
    world.transitions()
    world.kill(tracker.registry.id)
    assert world.deadline("grace") is not None
    tracker.regroup(ana())
    await eventually(lambda: world.deadline("grace") is None)
    assert world.news() == []
    assert world.status() == "away"


async def test_user_who_was_taken_offline_meanwhile_comes_online_anew(tracker: PresenceTracker, world: World):
    await tracker.connect(ana())
    world.kill(tracker.registry.id)
    world.end_grace()
    world.transitions()
    tracker.regroup(ana())
    await eventually(lambda: world.status() == "online")
    assert world.news() == [("offline", "online", "connect")]


async def test_nothing_is_announced_when_redis_comes_back_empty(tracker: PresenceTracker, world: World):
    await tracker.connect(ana())
    await tracker.connect(BOB)
    await tracker.choose("ana", "away")
    known = world.heartbeat()
    world.transitions()
    world.lose_everything()
    tracker.regroup(BOB)
    await eventually(lambda: world.status() == "away")
    assert world.status("bob", "sales") == "online"
    assert world.news() == []
    assert world.heartbeat() == known


async def test_user_in_grace_when_redis_comes_back_empty_gets_its_grace(
    tracker: PresenceTracker, world: World
):
    await tracker.connect(ana())
    await tracker.connect(BOB)
    tracker.disconnect("tab-1")
    await eventually(lambda: world.deadline("grace") is not None)
    world.transitions()
    world.lose_everything()
    tracker.regroup(BOB)
    await eventually(lambda: world.deadline("grace") is not None)
    assert world.status() == "online"
    assert world.news() == []
    world.end_grace()
    assert world.news() == [("online", "offline", "reset")]


async def test_user_who_went_offline_before_redis_lost_everything_stays_so(
    tracker: PresenceTracker, world: World
):
    await tracker.connect(ana())
    await tracker.connect(BOB)
    tracker.disconnect("tab-1")
    await eventually(lambda: world.deadline("grace") is not None)
    world.end_grace()
    change(tracker, "offline", since=1.0)
    world.lose_everything()
    tracker.regroup(BOB)
    await eventually(lambda: world.status("bob", "sales"))
    assert world.status() is None


async def test_user_who_logged_out_is_not_put_into_grace_when_redis_comes_back_empty(
    tracker: PresenceTracker, world: World
):
    await tracker.connect(ana())
    await tracker.connect(BOB)
    await tracker.logout("tab-1")
    world.lose_everything()
    tracker.regroup(BOB)
    await eventually(lambda: world.status("bob", "sales"))
    assert world.status() is None
    assert world.deadline("grace") is None


async def test_who_connects_to_an_empty_redis_is_announced_and_the_others_are_not(
    tracker: PresenceTracker, world: World
):
    await tracker.connect(ana())
    world.transitions()
    world.lose_everything()
    await tracker.connect(Presentee("tab-2", "bob", "Bob", ("attendants",)))
    entries = world.transitions()
    assert [(entry["user_id"], entry["to"]) for entry in entries] == [("bob", "online")]
    assert world.status("ana") == "online"


# --- What others do ----------------------------------------------------------------------------------


async def test_what_redis_lost_last_is_sent_again(tracker: PresenceTracker, world: World):
    await tracker.connect(ana())
    await tracker.connect(BOB)
    before = world.keys()
    await tracker.choose("ana", "away")
    await tracker.connect(Presentee("tab-3", "cleo", "Cleo", ("sales",)))
    tracker.disconnect("tab-2")
    await eventually(lambda: world.deadline("grace", "bob") is not None)
    world.set_back(before)
    assert (world.status(), world.status("cleo", "sales")) == ("online", None)
    tracker.regroup(ana())
    await eventually(lambda: world.deadline("grace", "bob") is not None)
    assert (world.status(), world.status("cleo", "sales")) == ("away", "online")


async def test_redis_that_knows_more_than_it_could_answer_has_lost_nothing(
    tracker: PresenceTracker, world: World, monkeypatch, caplog
):
    await tracker.connect(ana())
    lose_the_next_answer(monkeypatch)
    with pytest.raises(RedisError):
        await tracker.choose("ana", "away")
    await tracker.choose("ana", "online")
    assert "registered again" not in caplog.text


async def test_change_made_elsewhere_is_remembered_for_a_restart_of_redis(
    tracker: PresenceTracker, world: World
):
    await tracker.connect(ana())
    change(tracker, "away", since=1500.0)
    world.transitions()
    world.lose_everything()
    tracker.regroup(ana())
    await eventually(lambda: world.status() == "away")
    assert world.heartbeat() == store.State("away", True, 1500)
    assert world.news() == []


async def test_change_of_a_user_who_is_not_here_is_not_remembered(tracker: PresenceTracker, world: World):
    change(tracker, "away", since=1500.0, user="bob")
    world.lose_everything()
    await tracker.connect(BOB)
    assert world.status("bob", "sales") == "online"


async def test_change_in_another_namespace_is_not_remembered(tracker: PresenceTracker, world: World):
    await tracker.connect(ana())
    tracker.registry.on_presence(PresenceChanged("ana", "away", chosen=True, since=1500.0, namespace=PORTAL))
    world.lose_everything()
    tracker.regroup(ana())
    await eventually(world.status)
    assert world.status() == "online"


# --- Snapshots ---------------------------------------------------------------------------------------


async def test_many_who_ask_at_once_share_a_snapshot_that_sees_all_of_them(
    tracker: PresenceTracker, monkeypatch
):
    snapshot = AsyncMock(wraps=store.snapshot)
    monkeypatch.setattr(store, "snapshot", snapshot)

    async def arrive(n: int) -> set[str]:
        await asyncio.sleep(n / 1000)
        await tracker.connect(Presentee(f"tab-{n}", f"user-{n}", "", ("attendants",)))
        return {member["user_id"] for member in await tracker.snapshot("attendants")}

    seen = await asyncio.gather(*(arrive(n) for n in range(100)))
    assert all(f"user-{n}" in members for n, members in enumerate(seen))
    assert snapshot.await_count <= 4


async def test_failed_snapshot_is_said_to_the_caller_that_asked_and_not_to_the_next(
    tracker: PresenceTracker, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(store, "snapshot", AsyncMock(side_effect=RedisDown("gone")))
        with pytest.raises(RedisError):
            await tracker.snapshot("attendants")
    assert await tracker.snapshot("attendants") == []


# --- A record that Redis has lost ----------------------------------------------------------------------


async def test_choice_that_redis_did_not_take_is_not_confirmed(tracker: PresenceTracker, world: World):
    with pytest.raises(RedisError):
        await tracker.choose("ana", "away")


async def test_status_can_be_chosen_though_redis_has_lost_the_record(tracker: PresenceTracker, world: World):
    async with connected(user_id="ana") as client:
        world.transitions()
        world.redis.delete(f"{store.base(HUB)}:user:ana")
        await client.call("presence:away")
        assert world.status() == "away"
        assert world.news() == [("online", "online", "reset"), ("online", "away", "chosen")]


async def test_chosen_status_survives_the_loss_of_its_record(tracker: PresenceTracker, world: World):
    async with connected(user_id="ana") as client:
        await client.call("presence:away")
        world.transitions()
        world.redis.delete(f"{store.base(HUB)}:user:ana")
        await client.call("heartbeat")
        await eventually(lambda: world.status() == "away")
        assert [(t["from"], t["to"], t["gained"]) for t in world.transitions()] == [
            ("away", "away", ["attendants"])
        ]
