"""History that is older than it is to be kept."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, connections

from presence.models import PresenceTransition
from presence.recorder import history
from presence.recorder import recorder as module
from presence.recorder.recorder import Recorder
from tests.presence.recording import START, Clock, append, record

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("realtime_redis")]


def days_ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


@pytest.fixture
def keep_ten_days(settings) -> None:
    settings.REALTIME = {**settings.REALTIME, "PRESENCE_RETENTION": 10 * 86400}


@pytest.mark.usefixtures("keep_ten_days")
def test_history_older_than_the_retention_is_forgotten_and_nothing_else():
    append("7", at=days_ago(11))
    append("7", "online", "away", at=days_ago(10.001))
    kept = append("7", "away", "offline", at=days_ago(9.9))
    Recorder().step()
    assert [line.entry_id for line in PresenceTransition.objects.all()] == [kept]
    assert PresenceTransition.groups.through.objects.count() == 1
    assert record().status == "offline"


@pytest.mark.usefixtures("keep_ten_days")
@pytest.mark.parametrize("ahead", ["ours", "that of Redis"])
def test_clock_that_is_ahead_forgets_nothing(monkeypatch, ahead: str):
    append(at=days_ago(1))
    in_a_year = datetime.now(UTC) + timedelta(days=366)
    if ahead == "ours":
        monkeypatch.setattr(module.timezone, "now", lambda: in_a_year)
    else:
        monkeypatch.setattr(module, "time_sync", in_a_year.timestamp)
    Recorder().step()
    assert PresenceTransition.objects.count() == 1


def test_history_is_kept_for_ever_with_a_retention_of_zero(settings):
    settings.REALTIME = {**settings.REALTIME, "PRESENCE_RETENTION": 0}
    append(at=days_ago(10_000))
    Recorder().step()
    assert PresenceTransition.objects.count() == 1


@pytest.mark.usefixtures("keep_ten_days")
def test_backlog_of_old_history_goes_batch_by_batch_between_what_is_recorded(clock: Clock, monkeypatch):
    recorder = Recorder()
    recorder.step()
    for number in range(7):
        append(f"u{number}", at=days_ago(20 - number))
    recorder.step()
    clock.now += module.PRUNE_SECONDS
    monkeypatch.setattr(history, "PRUNE_BATCH", 3)
    left = []
    for _ in range(3):
        recorder.step()
        left.append([line.user_id for line in PresenceTransition.objects.order_by("at")])
    assert left == [["u3", "u4", "u5", "u6"], ["u6"], []]
    append("8", at=days_ago(11))
    recorder.step()
    assert PresenceTransition.objects.count() == 1  # until it is time again
    clock.now += module.PRUNE_SECONDS
    recorder.step()
    assert not PresenceTransition.objects.exists()


def test_old_history_is_found_by_its_index():
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")  # what it would do with a table so small
        old = PresenceTransition.objects.filter(at__lt=START).order_by("at", "id")
        assert "presence_history_at" in old.values_list("pk")[:500].explain()


@pytest.mark.django_db(transaction=True)
def test_two_recorders_forget_everything_once():
    for number in range(40):
        append(f"u{number}", at=days_ago(20))
    Recorder().step()
    pruned = []

    def work() -> None:
        try:
            pruned.append(history.prune(datetime.now(UTC)))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(pruned) == 40
    assert not PresenceTransition.objects.exists()
