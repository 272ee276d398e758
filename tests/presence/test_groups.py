"""Groups of a user: which are gained and lost, and what is announced to each."""

from __future__ import annotations

from datetime import datetime

from .world import World


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


def test_offline_is_announced_to_all_groups(ana: World):
    ana.connect(connection="tab-2", groups=("sales",))
    ana.transitions()
    ana.kill()
    ana.end_grace()
    (entry,) = ana.transitions()
    assert (entry["to"], entry["groups"]) == ("offline", ["attendants", "sales"])
    assert ana.status() is None
    assert ana.status(group="sales") is None


def test_instance_that_is_killed_takes_the_groups_of_its_connections_with_it(ana: World):
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
