"""Presence of customers: the team's rules, but per thread, and with a grace period for each thread."""

from __future__ import annotations

import asyncio
import json

import pytest

from presence import store
from presence.events import announcements
from presence.operations import Presentee
from presence.tracker import PresenceTracker
from tests.inprocess import HUB, PORTAL, data_of, eventually
from tests.presence.world import World


@pytest.fixture
def world(realtime_redis: str) -> World:
    return World(PORTAL)


@pytest.fixture
def carla(world: World) -> World:
    """A world in which Carla has a page open that shows threads 42 and 43, and that was announced."""
    world.connect("carla", groups=("42", "43"))
    world.transitions()
    return world


def regroup(world: World, *threads: str, connection: str = "tab-1", dropped: tuple[str, ...] = ()) -> None:
    world.apply(
        {"does": "regroup", "connection": connection, "groups": threads, "dropped": dropped},
        instance="instance-1",
    )


def announced(world: World) -> list[tuple[str, str]]:
    """What was announced since the last call: thread and event."""
    found = []
    for transition in world.transitions():
        for message in announcements(json.dumps(transition).encode()):
            thread_id = data_of(message)["thread_id"]
            assert message.targets == ((HUB, f"thread:{thread_id}"),)
            found.append((thread_id, message.event.removeprefix("customer:")))
    return found


def there(thread: str) -> set[str]:
    return {member["user_id"] for member in store.snapshot_sync(PORTAL, thread)}


def test_first_connection_is_announced_to_each_thread_once(world: World):
    world.connect("carla", groups=("42", "43"))
    world.connect("carla", "tab-2", groups=("42",), instance="instance-2")
    assert announced(world) == [("42", "online"), ("43", "online")]
    assert there("42") == there("43") == {"carla"}


def test_transition_names_the_namespace(world: World):
    world.connect("carla", groups=("42",))
    (transition,) = world.transitions()
    assert (transition["namespace"], transition["from"], transition["to"]) == ("portal", "offline", "online")


def test_team_and_customers_of_the_same_id_are_different_people(carla: World):
    team = World(HUB)
    team.connect("carla", groups=("42",))
    assert store.snapshot_sync(HUB, "42")[0]["user_id"] == "carla"
    team.logout()
    assert store.snapshot_sync(HUB, "42") == []
    assert there("42") == {"carla"}


def test_customer_without_a_thread_is_not_announced(world: World):
    world.connect("carla", groups=())
    assert announced(world) == []


def test_customer_is_never_away(carla: World):
    assert carla.deadline("away", "carla") is None
    carla.heartbeat("carla")
    assert carla.deadline("away", "carla") is None


def test_thread_joined_later_hears_of_the_customer_then(carla: World):
    regroup(carla, "42", "43", "77")
    assert announced(carla) == [("77", "online")]
    assert there("77") == {"carla"}


def test_return_within_the_grace_period_is_not_announced(carla: World):
    regroup(carla, "42", "43", "77")
    carla.transitions()
    carla.disconnect()
    carla.connect("carla", "tab-2", groups=("42", "43"))  # thread 77 was granted: it is joined a moment later
    assert there("77") == {"carla"}
    regroup(carla, "42", "43", "77", connection="tab-2")
    assert carla.deadline("lost", "carla|77") is None
    assert announced(carla) == []


def test_thread_that_is_not_joined_again_is_lost_after_its_grace_period(carla: World):
    carla.disconnect()
    carla.connect("carla", "tab-2", groups=("42",))
    assert announced(carla) == []
    carla.pass_deadline("lost", "carla|43")
    carla.sweep()
    assert announced(carla) == [("43", "offline")]
    assert (there("42"), there("43")) == ({"carla"}, set())
    carla.sweep()
    assert announced(carla) == []


def test_thread_of_a_closed_tab_is_lost_after_its_grace_period(carla: World):
    carla.connect("carla", "tab-2", groups=("77",))
    assert announced(carla) == [("77", "online")]
    carla.disconnect("tab-2")
    assert 59_000 < (carla.deadline("lost", "carla|77") or 0) <= 60_000
    carla.pass_deadline("lost", "carla|77")
    carla.sweep()
    assert announced(carla) == [("77", "offline")]


def test_each_thread_has_a_grace_period_of_its_own(carla: World):
    carla.connect("carla", "tab-2", groups=("77",))
    carla.connect("carla", "tab-3", groups=("78",))
    carla.transitions()
    carla.disconnect("tab-2")
    carla.redis.zincrby(f"{carla.base}:deadlines", -30_000, "lost|carla|77")
    carla.disconnect("tab-3")
    assert (carla.deadline("lost", "carla|77") or 0) <= 30_000
    assert (carla.deadline("lost", "carla|78") or 0) > 59_000


def test_lost_thread_that_is_judged_in_the_grace_period_prolongs_no_other(carla: World):
    carla.connect("carla", "tab-2", groups=("77",))
    carla.disconnect("tab-2")
    carla.disconnect()
    carla.pass_deadline("lost", "carla|77")
    carla.sweep()
    assert carla.deadline("lost", "carla|42") is None
    assert there("42") == {"carla"}


def test_last_connection_lost_is_announced_once_after_the_grace_period(carla: World):
    carla.disconnect()
    assert announced(carla) == []
    assert there("42") == {"carla"}
    carla.end_grace("carla")
    assert announced(carla) == [("42", "offline"), ("43", "offline")]
    assert there("42") == set()


def test_customers_of_a_killed_instance_are_lost_with_its_lease(carla: World):
    carla.kill()
    assert announced(carla) == []
    carla.end_grace("carla")
    assert announced(carla) == [("42", "offline"), ("43", "offline")]


def test_thread_of_a_killed_instance_has_its_grace_though_another_tab_is_open(carla: World):
    carla.connect("carla", "tab-2", groups=("77",), instance="instance-2")
    carla.transitions()
    carla.kill("instance-2")
    assert announced(carla) == []
    carla.pass_deadline("lost", "carla|77")
    carla.sweep()
    assert announced(carla) == [("77", "offline")]


def test_right_that_ends_is_announced_at_once(carla: World):
    regroup(carla, "43", dropped=("42",))
    assert announced(carla) == [("42", "offline")]
    assert there("42") == set()


def test_right_that_ends_is_announced_once_when_the_last_tab_has_left(carla: World):
    carla.connect("carla", "tab-2", groups=("42",), instance="instance-2")
    regroup(carla, "43", dropped=("42",))
    assert announced(carla) == []
    regroup(carla, connection="tab-2", dropped=("42",))
    assert announced(carla) == [("42", "offline")]


def test_right_that_ends_leaves_what_is_in_grace_alone(carla: World):
    carla.connect("carla", "tab-2", groups=("77",))
    carla.disconnect("tab-2")
    carla.transitions()
    regroup(carla, "43", dropped=("42",))
    assert announced(carla) == [("42", "offline")]
    assert there("77") == {"carla"}


def test_refreshed_token_may_end_a_right(carla: World):
    carla.connect("carla", groups=("43",), refreshed=True, dropped=("42",))
    assert announced(carla) == [("42", "offline")]


def test_connection_that_is_over_is_in_no_other_thread(carla: World):
    carla.disconnect()
    regroup(carla, "42", "43", "99")
    assert announced(carla) == []
    assert there("99") == set()


def test_nothing_is_announced_when_redis_comes_back_empty(carla: World):
    carla.connect("carla", "tab-2", groups=("77",), instance="instance-2")
    carla.transitions()
    carla.lose_everything()
    restored = {"status": "online", "chosen": False, "since": carla.now}
    for instance, connection, threads in (
        ("instance-1", "tab-1", ["42", "43"]),
        ("instance-2", "tab-2", ["77"]),
    ):
        carla.register(
            {
                "does": "connect",
                "connection": connection,
                "user": "carla",
                "name": "Carla",
                "groups": threads,
                "restored": restored,
                "silent": True,
            },
            instance=instance,
        )
    assert announced(carla) == []
    assert there("42") == there("77") == {"carla"}


def test_snapshot_of_the_team_knows_no_customer(carla: World):
    assert store.snapshot_sync(HUB, "42") == []


# --- As an instance keeps it --------------------------------------------------------------------------


def page(*threads: str) -> Presentee:
    return Presentee(connection_id="tab-1", user_id="carla", name="Carla", groups=threads)


async def test_instance_keeps_team_and_customers_apart(process: str):
    assert PresenceTracker.current(PORTAL) is PresenceTracker.current(PORTAL)
    assert PresenceTracker.current(PORTAL) is not PresenceTracker.current(HUB)


async def test_instance_registers_its_customers_again_when_redis_comes_back_empty(process: str):
    tracker, world = PresenceTracker.current(PORTAL), World(PORTAL)
    await tracker.connect(page("42"))
    assert announced(world) == [("42", "online")]
    world.lose_everything()
    tracker.regroup(page("42", "43"))
    await eventually(lambda: there("43"))
    assert there("42") == {"carla"}
    assert ("42", "online") not in announced(world)


async def test_customer_whose_grace_period_is_over_is_forgotten(process: str, settings):
    settings.REALTIME = {**settings.REALTIME, "GRACE_PERIOD": 0.2}
    tracker, world = PresenceTracker.current(PORTAL), World(PORTAL)
    await tracker.connect(page("42"))
    tracker.disconnect("tab-1")
    await tracker.connect(Presentee("tab-2", "dora", "Dora", ("43",)))
    world.pass_deadline("grace", "carla")
    await asyncio.sleep(0.3)
    tracker.regroup(Presentee("tab-2", "dora", "Dora", ("44",)))
    await eventually(lambda: there("44"))
    world.lose_everything()
    tracker.regroup(Presentee("tab-2", "dora", "Dora", ("45",)))
    await eventually(lambda: there("45"))
    assert there("42") == set()


def test_ids_with_bars_in_them_are_distinguished(world: World):
    world.connect("idp|carla", groups=("42|a", "43|b"))
    world.transitions()
    world.disconnect()
    world.connect("idp|carla", "tab-2", groups=("42|a",))
    world.pass_deadline("lost", "idp:carla|43|b")
    world.sweep()
    assert announced(world) == [("43|b", "offline")]
    world.disconnect("tab-2")
    world.pass_deadline("grace", "idp:carla")
    world.sweep()
    assert announced(world) == [("42|a", "offline")]
    assert there("42|a") == set()


@pytest.mark.usefixtures("realtime_redis")
def test_user_of_the_team_with_a_bar_in_the_id_becomes_away():
    team = World(HUB)
    team.connect("idp|ana", groups=("Équipe São Paulo",))
    team.pass_deadline("away", "idp:ana")
    team.sweep()
    (member,) = store.snapshot_sync(HUB, "Équipe São Paulo")
    assert (member["user_id"], member["status"]) == ("idp|ana", "away")
