"""Groups of a user: which are gained and lost, and what is announced to each."""

from __future__ import annotations

from datetime import datetime

import pytest

from .world import World

CHANGES: dict[str, tuple[str, str, str, list[str], list[str]]] = {
    "another tab gains groups": ("", "connect ana tab-2 groups=sales", "connect", ["sales"], []),
    "a lost tab loses those of no other tab": (
        "connect ana tab-2 groups=sales,attendants,support",
        "disconnect tab-2",
        "grace",
        [],
        ["sales", "support"],
    ),
    "a refreshed token does both": (
        "",
        "connect ana tab-1 groups=sales refreshed=yes",
        "connect",
        ["sales"],
        ["attendants"],
    ),
    "so does a return in the grace period": (
        "disconnect",
        "connect ana tab-2 groups=sales",
        "connect",
        ["sales"],
        ["attendants"],
    ),
    "a killed instance takes those of its connections with it": (
        "connect ana tab-2 groups=sales instance=instance-2; connect ana tab-3 groups=vip instance=instance-2",
        "kill instance-2",
        "lease",
        [],
        ["sales", "vip"],
    ),
}


@pytest.mark.parametrize(("before", "story", "reason", "gained", "lost"), CHANGES.values(), ids=CHANGES)
def test_change_of_groups_is_announced_once_to_those_it_concerns(
    ana: World, before: str, story: str, reason: str, gained: list[str], lost: list[str]
):
    ana.play(before)
    ana.transitions()
    ana.play(story)
    (entry,) = ana.transitions()
    assert (entry["from"], entry["to"], entry["reason"]) == ("online", "online", reason)
    assert (entry["gained"], entry["lost"]) == (gained, lost)
    everywhere = ("attendants", "sales", "support", "vip")
    assert [group for group in everywhere if ana.status(group=group)] == entry["groups"]


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


def test_offline_is_announced_to_all_groups(ana: World):
    ana.connect(connection="tab-2", groups=("sales",))
    ana.transitions()
    ana.kill()
    ana.end_grace()
    (entry,) = ana.transitions()
    assert (entry["to"], entry["groups"]) == ("offline", ["attendants", "sales"])
    assert ana.status() is None
    assert ana.status(group="sales") is None


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
