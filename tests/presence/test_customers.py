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


TAB_IN_42, TAB_IN_77 = "connect carla tab-2 groups=42", "connect carla tab-2 groups=77"
END_77 = "pass_deadline lost carla|77; sweep; sweep"
RULES: dict[str, tuple[str, str, dict[str, str]]] = {
    "a thread joined later hears of it then": ("", "regroup tab-1 groups=42,43,77", {"77": "online"}),
    "a lost connection joins no thread": ("disconnect", "regroup tab-1 groups=42,43,77", {}),
    "a thread that is not joined again": (
        f"disconnect; {TAB_IN_42}; sweep",
        "pass_deadline lost carla|43; sweep; sweep",
        {"43": "offline"},
    ),
    "the thread of a closed tab": (f"{TAB_IN_77}; disconnect tab-2; sweep", END_77, {"77": "offline"}),
    "the last connection": (
        "disconnect; sweep",
        "end_grace carla; sweep",
        {"42": "offline", "43": "offline"},
    ),
    "a killed instance": ("kill", "end_grace carla", {"42": "offline", "43": "offline"}),
    "one of two instances": (
        f"{TAB_IN_77} instance=instance-2; kill instance-2",
        END_77,
        {"77": "offline"},
    ),
    "a right that ends": ("", "regroup tab-1 groups=43 dropped=42", {"42": "offline"}),
    "in another tab later": (
        f"{TAB_IN_42}; regroup tab-1 groups=43 dropped=42",
        "regroup tab-2 dropped=42",
        {"42": "offline"},
    ),
    "and nothing else that is in grace": (
        f"{TAB_IN_77}; disconnect tab-2",
        "regroup tab-1 groups=43 dropped=42",
        {"42": "offline"},
    ),
    "by a refreshed token": (
        "",
        "connect carla tab-1 groups=43 refreshed=yes dropped=42",
        {"42": "offline"},
    ),
}


@pytest.mark.parametrize(("before", "story", "events"), RULES.values(), ids=RULES)
def test_no_thread_is_lost_before_and_those_that_are_now_once(
    carla: World, before: str, story: str, events: dict[str, str]
):
    carla.play(before)
    statuses = {"42": "online", "43": "online", **dict(announced(carla))}
    assert "offline" not in statuses.values()
    carla.play(story)
    assert announced(carla) == [*events.items()]
    assert {thread for thread in ("42", "43", "77") if there(thread)} == {
        thread for thread, status in {**statuses, **events}.items() if status == "online"
    }


def test_return_within_the_grace_period_is_not_announced(carla: World):
    carla.play("regroup tab-1 groups=42,43,77; transitions; disconnect")
    carla.connect("carla", "tab-2", groups=("42", "43"))  # thread 77 was granted: it is joined a moment later
    assert there("77") == {"carla"}
    carla.regroup("tab-2", groups=("42", "43", "77"))
    assert carla.deadline("lost", "carla|77") is None
    assert announced(carla) == []


def test_each_thread_has_a_grace_period_of_its_own(carla: World):
    carla.connect("carla", "tab-2", groups=("77",))
    carla.connect("carla", "tab-3", groups=("78",))
    carla.transitions()
    carla.disconnect("tab-2")
    carla.redis.zincrby(f"{carla.base}:deadlines", -30_000, "lost|carla|77")
    carla.disconnect("tab-3")
    assert (carla.deadline("lost", "carla|77") or 0) <= 30_000
    assert carla.was_set_to(carla.deadline("lost", "carla|78"), 60_000)


def test_lost_thread_that_is_judged_in_the_grace_period_prolongs_no_other(carla: World):
    carla.play(f"{TAB_IN_77}; disconnect tab-2; disconnect; {END_77}")
    assert carla.deadline("lost", "carla|42") is None
    assert there("42") == {"carla"}


def test_nothing_is_announced_when_redis_comes_back_empty(carla: World):
    carla.connect("carla", "tab-2", groups=("77",), instance="instance-2")
    carla.transitions()
    carla.lose_everything()
    restored = {"status": "online", "chosen": False, "since": carla.now}
    for instance, tab, threads in (("instance-1", "tab-1", ("42", "43")), ("instance-2", "tab-2", ("77",))):
        carla.connect("carla", tab, groups=threads, instance=instance, restored=restored, silent=True)
    assert announced(carla) == []
    assert there("42") == there("77") == {"carla"}


# --- As an instance keeps it --------------------------------------------------------------------------


def page(*threads: str) -> Presentee:
    return Presentee(connection_id="tab-1", user_id="carla", name="Carla", groups=threads)


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
