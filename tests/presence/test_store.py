from __future__ import annotations

import json
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
from presence.store import LeaseLost, State
from realtime.redis.client import key, sync_client
from tests.inprocess import HUB

from .world import World

CAME = ("offline", "online", "connect")


@pytest.fixture
def world(realtime_redis: str) -> World:
    return World()


@pytest.fixture
def ana(world: World) -> World:
    """A world in which Ana is online, and everybody knows."""
    world.connect()
    world.transitions()
    return world


# --- Coming ------------------------------------------------------------------------------------------


def test_first_connection_announces_online_once(world: World):
    state = world.connect()
    assert world.news() == [CAME]
    assert world.status() == "online"
    assert state is not None
    assert (state.status, state.chosen) == ("online", False)


def test_further_connections_announce_nothing(ana: World):
    ana.connect(connection="tab-2")
    ana.connect(connection="tab-3", instance="instance-2")
    assert ana.news() == []


def test_users_do_not_hide_each_other(ana: World):
    ana.connect("bob", "tab-2")
    assert ana.news() == [CAME]
    assert (ana.status("ana"), ana.status("bob")) == ("online", "online")


def test_connection_told_twice_counts_once(ana: World):
    ana.connect()
    ana.disconnect()
    ana.end_grace()
    assert ana.news() == [("online", "offline", "grace")]


def test_same_name_in_other_installations_is_somebody_else(ana: World, settings):
    settings.REALTIME = {**settings.REALTIME, "PREFIX": settings.REALTIME["PREFIX"] + "-other"}
    assert store.snapshot_sync(HUB, "attendants") == []


# --- Chosen status -----------------------------------------------------------------------------------


def test_chosen_away_and_online_are_announced(ana: World):
    away = ana.choose("away")
    assert ana.news() == [("online", "away", "chosen")]
    assert away is not None
    assert (away.status, away.chosen) == ("away", True)
    ana.choose("online")
    assert ana.news() == [("away", "online", "chosen")]


@pytest.mark.parametrize("status", ["online", "away"])
def test_choosing_the_status_one_has_announces_nothing_more(ana: World, status: str):
    ana.choose(status)
    ana.transitions()
    ana.choose(status)
    assert ana.news() == []


def test_since_stays_while_the_status_does(ana: World):
    first = ana.choose("away")
    assert ana.choose("away") == first


def test_chosen_away_survives_another_tab(ana: World):
    ana.choose("away")
    ana.transitions()
    state = ana.connect(connection="tab-2")
    assert ana.news() == []
    assert state is not None
    assert (state.status, state.chosen) == ("away", True)


def test_chosen_away_survives_reconnects(ana: World):
    ana.choose("away")
    ana.transitions()
    ana.disconnect()
    ana.connect(connection="tab-2")
    assert ana.news() == []
    assert ana.status() == "away"


def test_chosen_away_survives_heartbeats(ana: World):
    ana.choose("away")
    ana.transitions()
    ana.heartbeat()
    assert ana.news() == []
    assert ana.status() == "away"


def test_chosen_away_does_not_survive_being_offline(ana: World):
    ana.choose("away")
    ana.disconnect()
    ana.end_grace()
    ana.transitions()
    ana.connect()
    assert ana.news() == [CAME]
    assert ana.status() == "online"


def test_away_by_itself_can_be_chosen_and_then_stays(ana: World):
    ana.silence()
    ana.choose("away")
    ana.transitions()
    ana.heartbeat()
    assert ana.news() == []


def test_status_set_over_the_bus_is_as_if_chosen(ana: World):
    ana.choose("away", reason="bus")
    assert ana.news() == [("online", "away", "bus")]
    ana.heartbeat()
    assert ana.news() == []


def test_status_of_who_is_not_there_cannot_be_chosen(world: World):
    assert world.choose("away") is None
    assert world.news() == []
    assert world.status() is None


def test_status_can_be_chosen_for_who_is_in_grace(ana: World):
    ana.disconnect()
    ana.choose("away", reason="bus")
    assert ana.news() == [("online", "away", "bus")]
    ana.end_grace()
    assert ana.news() == [("away", "offline", "grace")]


# --- Heartbeats --------------------------------------------------------------------------------------


def test_without_heartbeat_away_by_itself(ana: World):
    ana.silence()
    assert ana.news() == [("online", "away", "timeout")]


def test_away_by_itself_is_announced_once(ana: World):
    ana.silence()
    ana.sweep()
    assert len(ana.news()) == 1
    assert ana.deadline("away") is None


def test_opening_a_connection_counts_as_a_heartbeat(ana: World):
    assert 74_000 < ana.deadline("away") <= 75_000
    ana.pass_deadline("away")
    ana.connect(connection="tab-2")
    assert 74_000 < ana.deadline("away") <= 75_000


def test_heartbeat_from_any_connection_counts(ana: World):
    ana.connect(connection="tab-2")
    ana.pass_deadline("away")
    ana.heartbeat()
    ana.sweep()
    assert ana.news() == []


def test_choosing_online_counts_as_a_heartbeat(ana: World):
    ana.pass_deadline("away")
    ana.choose("online")
    ana.sweep()
    assert ana.news() == []


def test_heartbeat_brings_back_who_was_away_by_itself(ana: World):
    ana.silence()
    ana.transitions()
    ana.heartbeat()
    assert ana.news() == [("away", "online", "heartbeat")]


def test_another_tab_brings_back_who_was_away_by_itself(ana: World):
    ana.silence()
    ana.transitions()
    ana.connect(connection="tab-2")
    assert ana.news() == [("away", "online", "connect")]


def test_who_chose_away_has_no_timer(ana: World):
    ana.choose("away")
    assert ana.deadline("away") is None


def test_timer_stands_still_without_a_connection(ana: World):
    ana.disconnect()
    assert ana.deadline("away") is None
    ana.choose("online")
    ana.heartbeat()
    assert ana.deadline("away") is None


def test_timer_starts_anew_on_return(ana: World):
    ana.disconnect()
    ana.connect(connection="tab-2")
    assert 74_000 < ana.deadline("away") <= 75_000


def test_heartbeat_of_who_is_not_there_does_nothing(world: World):
    assert world.heartbeat() is None
    assert world.news() == []


def test_heartbeat_that_comes_too_late_does_not_end_the_grace_period(ana: World):
    ana.disconnect()
    assert ana.heartbeat() is None
    ana.end_grace()
    assert ana.news() == [("online", "offline", "grace")]


# --- Grace period ------------------------------------------------------------------------------------


def test_losing_the_last_connection_announces_nothing(ana: World):
    ana.disconnect()
    ana.sweep()
    assert ana.news() == []
    assert ana.status() == "online"
    assert 59_000 < ana.deadline("grace") <= 60_000


def test_losing_one_of_several_connections_starts_no_grace_period(ana: World):
    ana.connect(connection="tab-2")
    ana.disconnect("tab-1")
    assert ana.deadline("grace") is None


def test_back_within_grace_is_never_announced(ana: World):
    ana.disconnect()
    ana.connect(connection="tab-2")
    assert ana.deadline("grace") is None
    assert ana.news() == []


def test_back_within_grace_on_another_process_is_never_announced(ana: World):
    ana.disconnect()
    ana.connect(connection="tab-2", instance="instance-2")
    assert ana.news() == []


def test_back_within_grace_from_away_by_itself_is_online(ana: World):
    ana.silence()
    ana.disconnect()
    ana.transitions()
    ana.connect(connection="tab-2")
    assert ana.news() == [("away", "online", "connect")]


def test_not_back_within_grace_is_one_offline(ana: World):
    ana.disconnect()
    ana.end_grace()
    ana.sweep()
    assert ana.news() == [("online", "offline", "grace")]
    assert ana.status() is None


def test_away_user_goes_offline_from_away(ana: World):
    ana.choose("away")
    ana.disconnect()
    ana.transitions()
    ana.end_grace()
    assert ana.news() == [("away", "offline", "grace")]


def test_back_after_grace_comes_online_anew(ana: World):
    ana.disconnect()
    ana.end_grace()
    ana.transitions()
    ana.connect()
    assert ana.news() == [CAME]


def test_back_after_the_grace_period_ended_but_before_anybody_judged_is_a_return(ana: World):
    ana.disconnect()
    ana.pass_deadline("grace")
    ana.connect(connection="tab-2")
    ana.sweep()
    assert ana.news() == []


def test_loss_of_an_unknown_connection_does_nothing(ana: World):
    ana.disconnect("never-seen")
    ana.logout("never-seen")
    assert ana.news() == []
    assert ana.deadline("grace") is None


def test_loss_told_twice_does_not_prolong_the_grace_period(ana: World):
    ana.disconnect()
    ana.pass_deadline("grace")
    ana.disconnect()
    ana.sweep()
    assert ana.news() == [("online", "offline", "grace")]


# --- Log out -----------------------------------------------------------------------------------------


def test_logout_is_offline_at_once(ana: World):
    ana.logout()
    assert ana.news() == [("online", "offline", "logout")]
    assert ana.status() is None


def test_logout_leaves_no_deadline(ana: World):
    ana.logout()
    assert ana.redis.zcard(f"{ana.base}:deadlines") == 0


def test_logout_with_another_connection_open_announces_nothing(ana: World):
    ana.connect(connection="tab-2")
    ana.logout("tab-1")
    assert ana.news() == []
    assert ana.status() == "online"


def test_logout_of_the_last_of_several_is_offline_at_once(ana: World):
    ana.connect(connection="tab-2")
    ana.logout("tab-1")
    ana.logout("tab-2")
    assert ana.news() == [("online", "offline", "logout")]


def test_logout_with_another_connection_in_grace_waits_for_that(ana: World):
    ana.connect(connection="tab-2")
    ana.disconnect("tab-1")
    ana.logout("tab-2")
    assert ana.news() == []
    assert 59_000 < ana.deadline("grace") <= 60_000
    ana.end_grace()
    assert ana.news() == [("online", "offline", "grace")]


def test_connection_lost_longer_ago_than_the_grace_period_does_not_delay_a_logout(ana: World):
    ana.connect(connection="tab-2")
    ana.disconnect("tab-1")
    ana.redis.hset(f"{store.base(HUB)}:user:ana", "lost_until", ana.now - 1)
    ana.logout("tab-2")
    assert ana.news() == [("online", "offline", "logout")]


def test_return_after_logout_comes_online_anew(ana: World):
    ana.logout()
    ana.transitions()
    ana.connect(connection="tab-2")
    assert ana.news() == [CAME]


# --- Groups ------------------------------------------------------------------------------------------


def test_groups_are_the_union_over_open_connections(ana: World):
    ana.connect(connection="tab-2", groups=("sales", "attendants"))
    assert (ana.status(group="attendants"), ana.status(group="sales")) == ("online", "online")


def test_gaining_a_group_is_announced_to_that_group_only(ana: World):
    ana.connect(connection="tab-2", groups=("sales",))
    (entry,) = ana.transitions()
    assert (entry["from"], entry["to"], entry["reason"]) == ("online", "online", "connect")
    assert (entry["gained"], entry["lost"]) == (["sales"], [])
    assert entry["groups"] == ["attendants", "sales"]


def test_losing_a_group_is_announced_to_that_group_only(ana: World):
    ana.connect(connection="tab-2", groups=("sales", "support"))
    ana.transitions()
    ana.disconnect("tab-2")
    (entry,) = ana.transitions()
    assert (entry["gained"], entry["lost"]) == ([], ["sales", "support"])
    assert entry["groups"] == ["attendants"]
    assert ana.status(group="sales") is None


def test_group_shared_with_another_connection_is_not_lost(ana: World):
    ana.connect(connection="tab-2")
    ana.disconnect("tab-1")
    assert ana.news() == []
    assert ana.status() == "online"


def test_refreshed_token_changes_groups(ana: World):
    ana.connect(groups=("sales",), refreshed=True)
    (entry,) = ana.transitions()
    assert (entry["gained"], entry["lost"]) == (["sales"], ["attendants"])


def test_refreshed_token_is_no_heartbeat(ana: World):
    ana.silence()
    ana.transitions()
    ana.connect(groups=("sales",), refreshed=True)
    (entry,) = ana.transitions()
    assert (entry["from"], entry["to"]) == ("away", "away")
    assert ana.deadline("away") is None


def test_group_change_tells_since_when_the_status_is_what_it_is(ana: World):
    chosen = ana.choose("away")
    ana.transitions()
    ana.connect(connection="tab-2", groups=("sales",))
    (entry,) = ana.transitions()
    assert chosen is not None
    assert datetime.fromisoformat(entry["since"]).timestamp() * 1000 == chosen.since


def test_who_is_in_grace_stays_in_its_groups(ana: World):
    ana.disconnect()
    assert ana.status() == "online"


def test_return_with_other_groups_tells_both(ana: World):
    ana.disconnect()
    ana.connect(connection="tab-2", groups=("sales",))
    (entry,) = ana.transitions()
    assert (entry["gained"], entry["lost"]) == (["sales"], ["attendants"])


def test_offline_is_told_to_all_groups(ana: World):
    ana.connect(connection="tab-2", groups=("sales",))
    ana.transitions()
    ana.kill()
    ana.end_grace()
    (entry,) = ana.transitions()
    assert (entry["to"], entry["groups"]) == ("offline", ["attendants", "sales"])
    assert ana.status() is None
    assert ana.status(group="sales") is None


def test_process_that_is_killed_takes_the_groups_of_its_connections_with_it(ana: World):
    ana.connect(connection="tab-2", groups=("sales",), instance="instance-2")
    ana.connect(connection="tab-3", groups=("support",), instance="instance-2")
    ana.transitions()
    ana.kill("instance-2")
    (entry,) = ana.transitions()
    assert (entry["reason"], entry["gained"], entry["lost"]) == ("lease", [], ["sales", "support"])


def test_return_together_with_a_status_change_tells_the_old_groups_before_the_new(ana: World):
    ana.silence()
    ana.transitions()
    ana.connect(connection="tab-2", groups=("sales",))
    change, regrouping = ana.transitions()
    assert (change["from"], change["to"], change["groups"]) == ("away", "online", ["attendants"])
    assert regrouping["gained"] == ["sales"]


def test_user_without_groups_is_present_nowhere(world: World):
    world.connect(groups=())
    (entry,) = world.transitions()
    assert entry["groups"] == []
    assert world.status() is None


# --- Processes that die ------------------------------------------------------------------------------


def test_killed_process_has_its_connections_lost_when_its_lease_ends(ana: World):
    ana.kill()
    assert ana.news() == []
    assert 58_000 < ana.deadline("grace") <= 60_000
    ana.end_grace()
    assert ana.news() == [("online", "offline", "lease")]


def test_no_group_sees_anybody_leave_before_the_grace_period_when_a_process_is_killed(ana: World):
    ana.connect(connection="tab-2", groups=("sales",))
    ana.transitions()
    ana.kill()
    assert ana.news() == []
    assert (ana.status(), ana.status(group="sales")) == ("online", "online")


def test_grace_period_counts_from_the_end_of_the_lease_not_from_when_it_was_judged(ana: World):
    ana.redis.zadd(f"{store.base(HUB)}:nodes", {"instance-1": ana.now - 30_000}, xx=True)
    ana.sweep()
    assert 28_000 < ana.deadline("grace") <= 30_000


def test_connection_to_another_process_goes_on(ana: World):
    ana.connect(connection="tab-2", instance="instance-2")
    ana.kill("instance-1")
    assert ana.deadline("grace") is None
    assert ana.news() == []


def test_reconnecting_elsewhere_within_grace_after_a_kill_is_never_announced(ana: World):
    ana.kill("instance-1")
    ana.connect(connection="tab-2", instance="instance-2")
    assert ana.news() == []
    assert ana.deadline("grace") is None


def test_reconnecting_before_the_lease_ended_is_never_announced(ana: World):
    ana.connect(connection="tab-2", instance="instance-2")
    ana.kill("instance-1")
    ana.sweep()
    assert ana.news() == []
    assert ana.status() == "online"


def test_every_call_renews_the_lease(ana: World):
    ana.redis.zadd(f"{store.base(HUB)}:nodes", {"instance-1": ana.now + 10}, xx=True)
    ana.apply(instance="instance-1")
    lease: Any = ana.redis.zscore(f"{store.base(HUB)}:nodes", "instance-1")
    assert 9_000 < lease - ana.now <= 10_000


def test_process_whose_lease_ended_must_register_before_anything_is_done(ana: World):
    ana.kill("instance-1")
    with pytest.raises(LeaseLost):
        ana.apply_once(
            {"does": "choose", "user": "ana", "status": "away", "reason": "chosen"}, instance="instance-1"
        )
    assert ana.news() == []


def test_process_that_registers_again_after_its_lease_ended_goes_on_unnoticed(ana: World):
    before = ana.choose("away")
    ana.transitions()
    ana.kill("instance-1")
    assert before is not None
    ana.register(
        {
            "does": "connect",
            "connection": "tab-1",
            "user": "ana",
            "name": "Ana",
            "groups": ["attendants"],
            "restored": {"status": "away", "chosen": True, "since": before.since},
        },
        instance="instance-1",
    )
    ana.sweep()
    assert ana.news() == []
    assert ana.status() == "away"
    assert ana.deadline("grace") is None


def test_registering_again_is_no_heartbeat(ana: World):
    ana.silence()
    ana.transitions()
    ana.kill()
    ana.connect(restored={"status": "away", "chosen": False, "since": ana.now})
    assert ana.news() == []
    assert ana.status() == "away"


def test_process_that_ends_in_good_order_leaves_nothing_behind(ana: World):
    ana.disconnect()
    ana.apply({"does": "close"}, instance="instance-1")
    assert ana.redis.zcard(f"{store.base(HUB)}:nodes") == 0
    assert ana.redis.exists(f"{store.base(HUB)}:node:instance-1") == 0


# --- Redis that stands still or loses everything -----------------------------------------------------


def test_after_redis_stood_still_nobody_is_judged_before_processes_could_renew(ana: World):
    ana.connect("bob", "tab-2", instance="instance-2")
    ana.disconnect("tab-2", instance="instance-2")
    ana.transitions()
    for what, user in (("away", "ana"), ("grace", "bob")):
        ana.pass_deadline(what, user)
    ana.redis.zadd(f"{store.base(HUB)}:nodes", {"instance-1": ana.now - 1}, xx=True)
    ana.stand_still(30_000)
    assert ana.sweep() == 0
    assert ana.news() == []
    for what, user in (("away", "ana"), ("grace", "bob")):
        assert 9_000 < ana.deadline(what, user) <= 10_000


def test_who_is_still_silent_one_lease_later_is_judged(ana: World):
    ana.pass_deadline("away")
    ana.stand_still(30_000)
    ana.sweep()
    ana.silence()
    assert ana.news() == [("online", "away", "timeout")]


def test_short_pause_postpones_nothing(ana: World):
    ana.pass_deadline("away")
    ana.stand_still(1_000)
    ana.sweep()
    assert ana.news() == [("online", "away", "timeout")]


def test_process_notices_that_redis_lost_everything(ana: World):
    epoch = ana.epochs["instance-1"]
    ana.lose_everything()
    with pytest.raises(LeaseLost) as caught:
        ana.apply_once(instance="instance-1")
    assert caught.value.epoch != epoch


def test_nobody_flaps_when_redis_comes_back_empty(ana: World):
    chosen = ana.choose("away")
    ana.transitions()
    ana.lose_everything()
    assert chosen is not None
    ana.connect(
        restored={"status": "away", "chosen": True, "since": chosen.since},
        silent=True,
    )
    assert ana.news() == []
    assert ana.heartbeat() == chosen
    assert ana.news() == []


def test_user_in_grace_when_redis_lost_everything_gets_the_rest_of_it(ana: World):
    ana.disconnect()
    ana.lose_everything()
    restored = {"status": "online", "chosen": False, "since": ana.now}
    ana.register(
        {
            "does": "grace",
            "user": "ana",
            "name": "Ana",
            "groups": ["attendants"],
            "restored": restored,
            "remaining": 20_000,
        },
        instance="instance-1",
    )
    assert 19_000 < ana.deadline("grace") <= 20_000
    assert ana.status() == "online"
    assert ana.news() == []
    ana.end_grace()
    assert ana.news() == [("online", "offline", "reset")]


def test_user_in_grace_gets_at_least_a_lease_to_come_back_after_redis_lost_everything(ana: World):
    ana.lose_everything()
    restored = {"status": "online", "chosen": False, "since": ana.now}
    operation = {"does": "grace", "user": "ana", "name": "Ana", "groups": [], "restored": restored}
    ana.register({**operation, "remaining": 5}, instance="instance-1")
    assert 9_000 < ana.deadline("grace") <= 10_000


def test_user_who_is_back_already_is_not_put_into_grace(ana: World):
    ana.lose_everything()
    restored = {"status": "online", "chosen": False, "since": ana.now}
    ana.connect(connection="tab-2", instance="instance-2", restored=restored, silent=True)
    operation = {"does": "grace", "user": "ana", "name": "Ana", "groups": [], "restored": restored}
    ana.register({**operation, "remaining": 5000}, instance="instance-1")
    assert ana.deadline("grace") is None


def test_user_whom_redis_forgot_goes_offline_once(world: World):
    operation = {"does": "forget", "user": "ana", "name": "Ana", "groups": ["attendants"], "status": "away"}
    assert world.apply(operation) == ["offline"]
    assert world.apply(operation) == [""]
    assert world.news() == [("away", "offline", "reset")]


def test_user_who_is_there_is_not_forgotten(ana: World):
    operation = {"does": "forget", "user": "ana", "name": "Ana", "groups": ["attendants"], "status": "online"}
    assert ana.apply(operation) == [""]
    assert ana.news() == []


# --- Records that expire -----------------------------------------------------------------------------


def test_record_expires_after_the_presence_ttl_without_any_sign(ana: World):
    assert 299_000 < ana.redis.pttl(f"{store.base(HUB)}:user:ana") <= 300_000


@pytest.mark.parametrize("does", ["heartbeat", "touch"])
def test_any_frame_keeps_the_record(ana: World, does: str):
    ana.redis.pexpire(f"{store.base(HUB)}:user:ana", 5_000)
    ana.apply({"does": does, "user": "ana"})
    assert ana.redis.pttl(f"{store.base(HUB)}:user:ana") > 290_000


def test_touch_is_no_heartbeat(ana: World):
    ana.pass_deadline("away")
    ana.apply({"does": "touch", "user": "ana"})
    ana.sweep()
    assert ana.news() == [("online", "away", "timeout")]


def test_record_outlives_the_grace_period(ana: World):
    ana.disconnect()
    assert ana.redis.pttl(f"{store.base(HUB)}:user:ana") > 350_000


def test_user_whose_record_expired_in_grace_still_goes_offline(ana: World):
    ana.disconnect()
    ana.redis.delete(f"{store.base(HUB)}:user:ana")
    ana.end_grace()
    assert ana.news() == [("online", "offline", "grace")]


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


def test_no_groups_are_an_empty_list(world: World):
    world.connect(groups=())
    (fields,) = [fields for _, fields in world.redis.xrange(store.stream())]
    assert b'"groups":[]' in fields[b"transition"]
    assert json.loads(world.redis.hget(f"{store.base(HUB)}:known", "ana"))["groups"] == []


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


def test_snapshot_of_an_unknown_group_is_empty(world: World):
    assert store.snapshot_sync(HUB, "nobody") == []


async def test_asynchronous_code_sees_the_same(world: World, process):
    world.connect()
    assert await store.snapshot(HUB, "attendants") == store.snapshot_sync(HUB, "attendants")


def test_statuses_of_several_users(ana: World):
    ana.connect("bob", "tab-2")
    ana.choose("away", "bob")
    assert store.statuses_sync(HUB, ["ana", "bob", "cem"]) == {
        "ana": "online",
        "bob": "away",
        "cem": "offline",
    }
    assert store.statuses_sync(HUB, []) == {}


def test_state_of_an_answer():
    assert store.state("") is None
    assert store.state('{"status":"away","chosen":true,"since":1500}') == State("away", True, 1500)


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


def test_status_set_for_who_was_not_there_is_not_set_when_they_have_come(world: World):
    set_over_the_bus(world, "away", order(1000))
    world.connect()
    set_over_the_bus(world, "away", order(1000))
    assert world.status() == "online"
