"""Users whom Redis has lost go offline in the database."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from presence import store
from presence.models import PresenceTransition
from presence.recorder.recorder import Recorder
from realtime.redis.client import sync_client
from tests.inprocess import HUB
from tests.presence.recording import Clock, append, groups_of, record, run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("realtime_redis")]


@pytest.mark.parametrize("status", ["online", "away"])
def test_user_whom_redis_lost_goes_offline_once_lease_and_grace_have_passed(clock: Clock, status: str):
    append("7", new=status, groups=["attendants", "sales"])
    first, second = Recorder(), Recorder()
    for seconds in (0, 35, 35):
        clock.now += seconds
        for recorder in (first, second):
            recorder.step()
    assert record().status == status
    clock.now += 1
    for _ in range(2):
        for recorder in (first, second):
            recorder.step()
    assert record().status == "offline"
    line = PresenceTransition.objects.latest("id")
    assert (line.from_status, line.to_status, line.reason, line.name) == (status, "offline", "reset", "Ana")
    assert groups_of(line) == {"attendants", "sales"}
    clock.now += 100
    for recorder in (first, second):
        recorder.step()
    assert PresenceTransition.objects.count() == 2


def test_user_whom_redis_knows_again_in_time_stays(clock: Clock):
    append("7")
    recorder = Recorder()
    recorder.step()
    clock.now += 40
    store.apply_sync(HUB, [{"does": "grace", **_in_grace("7")}])
    recorder.step()
    sync_client().delete(*sync_client().keys(f"{store.base(HUB)}:*"))
    clock.now += 40
    recorder.step()
    clock.now += 40
    recorder.step()
    assert record().status == "online"


def _in_grace(user_id: str) -> dict[str, Any]:
    return {
        "user": user_id,
        "name": "Ana",
        "groups": ["attendants"],
        "restored": {"status": "online", "chosen": False, "since": 0},
        "remaining": 60_000,
    }


def test_time_in_which_the_recorder_stood_still_does_not_count(clock: Clock):
    append("7")
    recorder = Recorder()
    recorder.step()
    clock.now += 100
    recorder.step()
    assert record().status == "online"
    for _ in range(3):
        clock.now += 30
        recorder.step()
    recorder.step()
    assert record().status == "offline"


def test_time_in_which_redis_did_not_answer_does_not_count(clock: Clock, monkeypatch):
    append("7")
    sleep = clock.sleep
    monkeypatch.setattr(clock, "sleep", lambda seconds: sleep(30))  # after each failure
    run(monkeypatch, None, *(RedisConnectionError("gone"), None) * 3, None)
    assert record().status == "online"


def test_looking_for_ghosts_is_one_round_trip_and_none_when_no_user_is_there(clock: Clock, monkeypatch):
    look = Mock(wraps=store.run_sync)
    monkeypatch.setattr(store, "run_sync", look)
    recorder = Recorder()
    recorder.step()
    assert not look.called
    for number in range(5):
        append(f"u{number}")
    clock.now += 10
    recorder.step()
    recorder.step()
    assert sorted(look.call_args.args[2]) == [f"u{number}" for number in range(5)]
    assert look.call_count == 1
