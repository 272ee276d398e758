"""What the store answers, and what it writes into the stream."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import presence
from presence import store
from presence.events import parse_transition
from realtime.redis.client import key, sync_client
from tests.inprocess import HUB

from .world import World

# --- What a transition looks like --------------------------------------------------------------------


def test_transition_has_the_fields_of_the_contract(world: World):
    world.connect("ana", groups=("sales", "attendants"), name="Ana Lima")
    (entry,) = world.transitions()
    at = entry.pop("at")
    assert entry == {
        "user_id": "ana",
        "namespace": "hub",
        "from": "offline",
        "to": "online",
        "reason": "connect",
        "name": "Ana Lima",
        "groups": ["attendants", "sales"],
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", at)
    assert abs(datetime.fromisoformat(at).timestamp() * 1000 - world.now) < 2_000


@pytest.mark.parametrize(
    "name", ['Ana "the boss"', "Aña \u2028 🦊", "a\\b", "line\nbreak", "", "null", "</script>", "\x00"]
)
def test_any_name_survives(world: World, name: str):
    world.connect(name=name)
    assert world.transitions()[0]["name"] == name
    assert store.snapshot_sync(HUB, "attendants")[0]["name"] == name
    world.disconnect()
    world.end_grace()
    assert world.transitions()[0]["name"] == name


def test_user_may_be_called_anything_an_id_can_be(world: World):
    for user in ("-", "7", "A_b-C", "x" * 64):
        world.connect(user, f"tab-{user}")
        world.silence(user)
        assert world.status(user) == "away"


def test_every_transition_can_be_read_by_the_bridge(world: World):
    world.connect(groups=("a", "b"))
    world.connect(connection="tab-2", groups=("c",))
    world.choose("away")
    world.logout("tab-2")
    world.disconnect()
    world.end_grace()
    entries: Any = world.redis.xrange(store.stream())
    assert len(entries) == 5
    for _, fields in entries:
        assert parse_transition(fields[b"transition"]).user_id == "ana"


# --- Snapshots ---------------------------------------------------------------------------------------


def test_snapshot_is_sorted_by_name_and_says_since_when(world: World):
    world.connect("7", "tab-1", name="Zoe")
    world.connect("8", "tab-2", name="Ana")
    world.connect("9", "tab-3", name="Ana")
    world.choose("away", "8")
    members = store.snapshot_sync(HUB, "attendants")
    assert [(member["user_id"], member["status"]) for member in members] == [
        ("8", "away"),
        ("9", "online"),
        ("7", "online"),
    ]
    for member in members:
        assert abs(datetime.fromisoformat(member["since"]).timestamp() * 1000 - world.now) < 2_000


def test_statuses_of_several_users(ana: World):
    ana.connect("bob", "tab-2")
    ana.choose("away", "bob")
    assert store.statuses_sync(HUB, ["ana", "bob", "cem"]) == {
        "ana": "online",
        "bob": "away",
        "cem": "offline",
    }
    assert store.statuses_sync(HUB, []) == {}


def test_all_keys_live_in_one_slot_of_a_cluster(ana: World):
    keys = {
        name.decode() for name in sync_client().keys(key("*")) + sync_client().keys(f"{store.base(HUB)}*")
    }
    tag = key("presence")
    assert keys
    assert all(name == tag or name.startswith(f"{{{tag}}}:") for name in keys), keys


# --- The calendar in Lua -----------------------------------------------------------------------------

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LUA = (Path(presence.__file__).parent / "scripts" / "apply.lua").read_text()
ISO = LUA[LUA.index("local function iso") : LUA.index("local function announce")]


@given(st.integers(0, 253402300799999))
@example(0)
@example(951782399999)  # the last millisecond before a leap day in a year that 400 divides
@example(951782400000)
@example(951868800000)
@example(1709164800000)  # 2024-02-29
@example(4107542400000)  # 2100-03-01: no leap day in a year that only 100 divides
@example(1735689599999)  # the end of a leap year
@example(253402300799999)
@hypothesis_settings(max_examples=300, suppress_health_check=list(HealthCheck))
def test_times_are_what_python_says(realtime_redis: str, milliseconds: int):
    text: Any = sync_client().eval(f"{ISO} return iso(tonumber(ARGV[1]))", 0, str(milliseconds))
    expected = EPOCH + timedelta(milliseconds=milliseconds)
    assert text.decode() == expected.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- Presence in numbers -----------------------------------------------------------------------------


def measure(world: World) -> store.Measure:
    (answer,) = world.apply({"does": "measure"})
    return msgspec.json.decode(answer, type=store.Measure)


def test_present_users_are_counted_by_how_they_are_seen(ana: World):
    assert measure(ana) == store.Measure(online=1, away=0, late=0)
    ana.connect("bia", "tab-2")
    ana.choose("away", "bia")
    assert measure(ana) == store.Measure(online=1, away=1, late=0)
    ana.choose("away")
    ana.choose("online", "bia")
    ana.choose("online", "bia")
    assert measure(ana) == store.Measure(online=1, away=1, late=0)
    ana.disconnect()
    assert measure(ana).away == 1  # in grace: the others still see it
    ana.end_grace()
    assert measure(ana) == store.Measure(online=1, away=0, late=0)


def test_judgement_that_is_due_is_late(ana: World):
    ana.pass_deadline("away")
    assert measure(ana).late > 0
    ana.sweep()
    assert measure(ana) == store.Measure(online=0, away=1, late=0)


# --- Orders over the bus -----------------------------------------------------------------------------


def order(at: int, sequence: int = 0) -> str:
    """As the bridge writes the id of an entry."""
    return f"{at:020d}-{sequence:020d}"


def set_over_the_bus(world: World, status: str, order: str) -> None:
    world.apply({"does": "choose", "user": "ana", "status": status, "reason": "bus", "order": order})


def choose_at(world: World, status: str, at: float) -> None:
    world.apply({"does": "choose", "user": "ana", "status": status, "reason": "chosen", "at": at})


def test_status_set_over_the_bus_is_set_once_however_often_it_is_handled(ana: World):
    set_over_the_bus(ana, "away", order(1000))
    set_over_the_bus(ana, "online", order(1000, 1))
    for entry in (order(1000), order(1000, 1)):
        set_over_the_bus(ana, "away", entry)
    assert ana.news() == [("online", "away", "bus"), ("away", "online", "bus")]


def test_own_choice_is_not_undone_by_what_was_set_before_it(ana: World):
    set_over_the_bus(ana, "away", order(1000))
    choose_at(ana, "online", 2000.7)
    set_over_the_bus(ana, "away", order(1000))
    set_over_the_bus(ana, "away", order(1999))
    assert ana.status() == "online"
    set_over_the_bus(ana, "away", order(2000))
    assert ana.status() == "away"


def test_own_choice_in_the_same_millisecond_is_not_undone_by_a_repetition(ana: World):
    set_over_the_bus(ana, "away", order(2000))
    choose_at(ana, "online", 2000.9)
    set_over_the_bus(ana, "away", order(2000))
    assert ana.status() == "online"


def test_status_of_before_a_log_out_is_not_set_after_it(ana: World):
    set_over_the_bus(ana, "away", order(1000))
    ana.apply({"does": "logout", "connection": "tab-1", "at": 2000.0}, instance="instance-1")
    ana.connect(connection="tab-2")
    for entry in (order(1000), order(1500)):
        set_over_the_bus(ana, "away", entry)
    assert ana.status() == "online"


def test_status_set_for_a_user_who_was_not_there_is_not_set_when_they_have_come(world: World):
    set_over_the_bus(world, "away", order(1000))
    world.connect()
    set_over_the_bus(world, "away", order(1000))
    assert world.status() == "online"
