"""Instances that die, a Redis that stands still or loses everything, and records that expire."""

from __future__ import annotations

from typing import Any

import pytest

from presence import store
from presence.store import LeaseLost
from tests.inprocess import HUB

from .world import World

# --- Instances that die ------------------------------------------------------------------------------


def test_grace_period_counts_from_the_end_of_the_lease_not_from_when_it_was_judged(ana: World):
    ana.redis.zadd(f"{store.base(HUB)}:nodes", {"instance-1": ana.now - 30_000}, xx=True)
    ana.sweep()
    assert ana.was_set_to(ana.deadline("grace"), 30_000)


def test_every_call_renews_the_lease(ana: World):
    ana.redis.zadd(f"{store.base(HUB)}:nodes", {"instance-1": ana.now + 10}, xx=True)
    ana.apply(instance="instance-1")
    lease: Any = ana.redis.zscore(f"{store.base(HUB)}:nodes", "instance-1")
    assert ana.was_set_to(lease - ana.now, 10_000)


def test_registering_again_is_no_heartbeat(ana: World):
    ana.silence()
    ana.transitions()
    ana.kill()
    ana.connect(restored={"status": "away", "chosen": False, "since": ana.now})
    assert ana.news() == []
    assert ana.status() == "away"


# --- Redis that stands still or loses everything -----------------------------------------------------


def test_after_a_standstill_of_redis_instances_may_renew_before_a_sweep_judges(ana: World):
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
        assert ana.was_set_to(ana.deadline(what, user), 10_000)


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


def test_user_in_grace_gets_at_least_a_lease_to_come_back_after_redis_lost_everything(ana: World):
    ana.lose_everything()
    restored = {"status": "online", "chosen": False, "since": ana.now}
    operation = {"does": "grace", "user": "ana", "name": "Ana", "groups": [], "restored": restored}
    ana.register({**operation, "remaining": 5}, instance="instance-1")
    assert ana.was_set_to(ana.deadline("grace"), 10_000)


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
    assert ana.was_set_to(ana.redis.pttl(f"{store.base(HUB)}:user:ana"), 300_000)


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


# --- A clock that is set forward, or back --------------------------------------------------------------


def test_instance_registers_again_when_records_may_have_expired(ana: World):
    """Redis' clock was set forward: no heartbeat has been missed that would show it."""
    ana.stand_still(80_000)
    ana.redis.delete(f"{store.base(HUB)}:user:ana")
    with pytest.raises(LeaseLost):
        ana.apply_once(instance="instance-1")


def test_instance_does_not_register_again_after_a_short_pause(ana: World):
    ana.stand_still(70_000)
    assert ana.apply_once(instance="instance-1") == []


def test_clock_that_is_set_back_delays_nothing_by_as_much(ana: World):
    ana.connect("bob", "tab-2", instance="instance-2")
    ana.disconnect("tab-2", instance="instance-2")
    ana.set_clock_back(3_600_000)
    ana.sweep()
    lease: Any = ana.redis.zscore(f"{store.base(HUB)}:nodes", "instance-1")
    assert ana.was_set_to(lease - ana.now, 10_000)
    for what, user in (("away", "ana"), ("grace", "bob")):
        assert ana.was_set_to(ana.deadline(what, user), 75_000)  # the longest duration of all


def test_clock_that_is_set_back_delays_nothing_however_much_is_due(
    ana: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "WORK", 1)
    for n in range(50):
        ana.connect(f"user-{n}", f"tab-{n + 2}")
    ana.set_clock_back(3_600_000)
    ana.sweep()
    assert all(ana.deadline("away", f"user-{n}") <= 75_000 for n in range(50))
    ana.silence("user-7")
    assert ana.news()[-1] == ("online", "away", "timeout")


def test_clock_that_is_set_back_by_a_moment_moves_nothing(ana: World):
    ana.pass_deadline("away")
    ana.set_clock_back(100)
    assert ana.sweep() == 0
    ana.silence()
    assert ana.news() == [("online", "away", "timeout")]
