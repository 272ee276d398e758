"""The status of a user: when it changes, and what is announced."""

from __future__ import annotations

import pytest

from presence import store
from tests.inprocess import HUB

from .world import CAME, World

TAB, TAB_ELSEWHERE = "connect ana tab-2", "connect ana tab-3 instance=instance-2"
RULES: dict[str, tuple[str, str, list[tuple[str, str, str]]]] = {
    # Coming
    "further connections announce nothing": ("", f"{TAB}; {TAB_ELSEWHERE}", []),
    "a connection that is reported twice counts once": (
        "",
        "connect; disconnect; end_grace",
        [("online", "offline", "grace")],
    ),
    # Chosen status
    "choosing away is announced": ("", "choose away", [("online", "away", "chosen")]),
    "choosing online is announced": ("choose away", "choose online", [("away", "online", "chosen")]),
    "choosing away again is not": ("choose away", "choose away", []),
    "choosing online again is not": ("choose online", "choose online", []),
    "chosen away survives another tab": ("choose away", TAB, []),
    "chosen away survives a reconnect": ("choose away", f"disconnect; {TAB}", []),
    "chosen away survives heartbeats": ("choose away", "heartbeat", []),
    "chosen away does not survive being offline": ("choose away; disconnect; end_grace", "connect", [CAME]),
    "away for want of a heartbeat can be chosen and then stays": ("silence; choose away", "heartbeat", []),
    "a status set over the bus is as if chosen": (
        "",
        "choose away ana bus; heartbeat",
        [("online", "away", "bus")],
    ),
    "a status can be chosen in the grace period": (
        "disconnect",
        "choose away ana bus; end_grace",
        [("online", "away", "bus"), ("away", "offline", "grace")],
    ),
    # Heartbeats
    "away without a heartbeat, announced once": ("", "silence; sweep", [("online", "away", "timeout")]),
    "a heartbeat of any connection counts": (TAB, "pass_deadline away; heartbeat; sweep", []),
    "choosing online counts as a heartbeat": ("", "pass_deadline away; choose online; sweep", []),
    "a heartbeat ends away": ("silence", "heartbeat", [("away", "online", "heartbeat")]),
    "another tab ends away": ("silence", TAB, [("away", "online", "connect")]),
    "a late heartbeat does not end the grace period": (
        "disconnect",
        "heartbeat; end_grace",
        [("online", "offline", "grace")],
    ),
    # Grace period
    "losing the last connection announces nothing": ("", "disconnect; sweep", []),
    "back within the grace period is not announced": ("disconnect", TAB, []),
    "nor is back on another instance": ("disconnect", TAB_ELSEWHERE, []),
    "back from away for want of a heartbeat is online": (
        "silence; disconnect",
        TAB,
        [("away", "online", "connect")],
    ),
    "not back within the grace period is one offline": (
        "disconnect",
        "end_grace; sweep",
        [("online", "offline", "grace")],
    ),
    "an away user goes offline from away": (
        "choose away; disconnect",
        "end_grace",
        [("away", "offline", "grace")],
    ),
    "back after the grace period comes online anew": ("disconnect; end_grace", "connect", [CAME]),
    "back before a sweep noticed the end is a return": (
        "disconnect",
        f"pass_deadline grace; {TAB}; sweep",
        [],
    ),
    "the loss of an unknown connection does nothing": ("", "disconnect never-seen; logout never-seen", []),
    "a loss reported twice does not prolong the grace period": (
        "disconnect",
        "pass_deadline grace; disconnect; sweep",
        [("online", "offline", "grace")],
    ),
    # Log out
    "a log-out is offline at once": ("", "logout", [("online", "offline", "logout")]),
    "a log-out with another connection open announces nothing": (TAB, "logout tab-1", []),
    "the log-out of the last connection is offline at once": (
        f"{TAB}; logout tab-1",
        "logout tab-2",
        [("online", "offline", "logout")],
    ),
    "a log-out waits for a connection in its grace period": (f"{TAB}; disconnect tab-1", "logout tab-2", []),
    "which then ends as any other": (
        f"{TAB}; disconnect tab-1; logout tab-2",
        "end_grace",
        [("online", "offline", "grace")],
    ),
    "a return after a log-out comes online anew": ("logout", TAB, [CAME]),
    # An instance that dies
    "the lease of a killed instance ends like a connection": (
        "",
        "kill; end_grace",
        [("online", "offline", "lease")],
    ),
    "a connection to another instance goes on": (TAB_ELSEWHERE, "kill", []),
    "nor is back elsewhere after a kill announced": ("kill", TAB_ELSEWHERE, []),
}


@pytest.mark.parametrize(("before", "story", "news"), RULES.values(), ids=RULES)
def test_status_follows_the_rule(ana: World, before: str, story: str, news: list[tuple[str, str, str]]):
    ana.play(before)
    status = ["online", *(to for _, to, _ in ana.news())][-1]
    ana.play(story)
    assert ana.news() == news
    status = [status, *(to for _, to, _ in news)][-1]
    assert ana.status() == (None if status == "offline" else status)


def test_first_connection_announces_online_once(world: World):
    state = world.connect()
    assert world.news() == [CAME]
    assert state is not None
    assert (state.status, state.chosen) == ("online", False)


def test_users_do_not_hide_each_other(ana: World):
    ana.connect("bob", "tab-2")
    assert ana.news() == [CAME]
    assert (ana.status("ana"), ana.status("bob")) == ("online", "online")


def test_same_name_in_other_installations_is_another_user(ana: World, settings):
    settings.REALTIME = {**settings.REALTIME, "PREFIX": settings.REALTIME["PREFIX"] + "-other"}
    assert store.snapshot_sync(HUB, "attendants") == []


def test_since_stays_while_the_status_does(ana: World):
    first = ana.choose("away")
    assert first is not None
    assert (first.status, first.chosen) == ("away", True)
    assert ana.choose("away") == ana.connect(connection="tab-2") == first


def test_absent_user_has_no_status_and_no_heartbeat(world: World):
    assert world.choose("away") is None
    assert world.heartbeat() is None
    assert world.news() == []
    assert world.status() is None


@pytest.mark.parametrize("story", ["", f"pass_deadline away; {TAB}", f"disconnect; {TAB}"])
def test_opening_a_connection_starts_the_timer_of_away(ana: World, story: str):
    ana.play(story)
    assert ana.was_set_to(ana.deadline("away"), 75_000)


@pytest.mark.parametrize(
    "story", ["choose away", "silence", "disconnect; choose online; heartbeat", "logout"]
)
def test_away_has_no_timer_for_a_user_who_is_away_or_gone(ana: World, story: str):
    ana.play(story)
    assert ana.deadline("away") is None


@pytest.mark.parametrize("story", ["disconnect", "kill", f"{TAB}; disconnect tab-1; logout tab-2"])
def test_last_connection_lost_starts_the_grace_period(ana: World, story: str):
    ana.play(story)
    assert ana.was_set_to(ana.deadline("grace"), 60_000)


@pytest.mark.parametrize(
    "story",
    [
        *(f"{TAB}; disconnect tab-1", f"disconnect; {TAB}", "disconnect never-seen", "logout"),
        *(f"{TAB_ELSEWHERE}; kill", f"kill; {TAB_ELSEWHERE}"),
    ],
)
def test_no_grace_period_with_a_connection_open_or_after_a_log_out(ana: World, story: str):
    ana.play(story)
    assert ana.deadline("grace") is None


def test_connection_lost_longer_ago_than_the_grace_period_does_not_delay_a_logout(ana: World):
    ana.play(f"{TAB}; disconnect tab-1")
    ana.redis.hset(f"{store.base(HUB)}:user:ana", "lost_until", ana.now - 1)
    ana.logout("tab-2")
    assert ana.news() == [("online", "offline", "logout")]
