"""The status of a user: when it changes, and what is announced."""

from __future__ import annotations

import pytest

from presence import store
from tests.inprocess import HUB

from .world import CAME, World

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


def test_back_within_grace_on_another_instance_is_never_announced(ana: World):
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
