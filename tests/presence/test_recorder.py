from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from django.core.management import call_command
from django.db import DataError, IntegrityError, OperationalError
from django.db.models import QuerySet
from prometheus_client import REGISTRY
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from presence import store
from presence.models import PresenceRecord, PresenceTransition, StreamCursor
from presence.recorder import history
from presence.recorder import recorder as module
from presence.recorder.recorder import Recorder
from realtime.redis.client import key, sync_client
from tests.presence.recording import START, append, append_raw, at, entry, groups_of, record, run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("realtime_redis")]


def dead_letters() -> list[dict[bytes, bytes]]:
    entries: Any = sync_client().xrange(key("dead"))
    return [fields for _, fields in entries]


# --- Transitions -----------------------------------------------------------------------------------


def test_transition_becomes_the_users_record_and_a_line_of_history():
    entry_id = append(groups=["sales", "attendants", "sales"])
    assert Recorder().step()
    current = record()
    assert (current.namespace, current.status, current.name) == ("hub", "online", "Ana")
    assert current.since == current.updated == START
    assert groups_of(current) == {"attendants", "sales"}
    line = PresenceTransition.objects.get()
    assert (line.entry_id, line.user_id, line.namespace, line.name) == (entry_id, "7", "hub", "Ana")
    assert (line.from_status, line.to_status, line.reason, line.at) == ("offline", "online", "connect", START)
    assert groups_of(line) == {"attendants", "sales"}
    assert str(line) == "Ana: offline → online"
    assert str(current) == "Ana (hub)"
    assert str(current.groups.first()) == "attendants"


def test_history_says_how_long_the_status_that_was_left_had_lasted():
    append("7", "offline", "online", at=at(0))
    append("7", "online", "away", at=at(90.5), reason="timeout")
    Recorder().step()
    append("7", "away", "offline", at=at(100), reason="grace")
    Recorder().step()
    durations = PresenceTransition.objects.order_by("at").values_list("duration", flat=True)
    assert list(durations) == [None, timedelta(seconds=90.5), timedelta(seconds=9.5)]
    assert record().status == "offline"
    assert record().since == START + timedelta(seconds=100)


def test_duration_is_unknown_when_another_status_was_left_than_was_seen_to_begin():
    append("7", "offline", "online", at=at(0))
    append("7", "away", "offline", at=at(50))
    append("7", "offline", "online", at=at(20))  # the clock was set back
    Recorder().step()
    assert set(PresenceTransition.objects.values_list("duration", flat=True)) == {None}


def test_regrouping_changes_the_records_groups_and_is_no_line_of_history():
    append(at=at(0))
    append("7", "online", "online", at=at(60), since=at(0), groups=["sales"], gained=["sales"])
    Recorder().step()
    assert groups_of(record()) == {"sales"}
    assert record().since == START
    assert record().updated == START + timedelta(seconds=60)
    assert PresenceTransition.objects.count() == 1


def test_regrouping_of_a_user_without_a_record_makes_one():
    append("7", "away", "away", at=at(60), since=at(10))
    append("8", "online", "online", at=at(60))
    Recorder().step()
    assert (record().status, record().since) == ("away", START + timedelta(seconds=10))
    assert record("8").since == START + timedelta(seconds=60)
    assert not PresenceTransition.objects.exists()


def test_customers_are_not_recorded():
    append("7")
    append("7", "online", "offline", namespace="portal", name="Bea")
    append("8", namespace="portal")
    Recorder().step()
    assert [(row.namespace, row.name, row.status) for row in PresenceRecord.objects.all()] == [
        ("hub", "Ana", "online")
    ]
    assert PresenceTransition.objects.count() == 1
    assert StreamCursor.objects.get().entry_id != "0-0"


def test_backlog_larger_than_a_batch_is_recorded_in_several(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    for number in range(7):
        append(f"u{number}")
    recorder = Recorder()
    assert [recorder.step(), recorder.step(), recorder.step()] == [False, False, True]
    assert PresenceTransition.objects.count() == 7
    assert StreamCursor.objects.get().entry_id == PresenceTransition.objects.latest("id").entry_id


def test_text_that_no_database_takes_is_made_fit():
    append(name="A\0na" + "x" * 300, at="2026-03-01T11:00:00+02:00")
    Recorder().step()
    assert record().name == "Ana" + "x" * 253
    assert record().since == START


# --- Exactly once ----------------------------------------------------------------------------------


def test_batch_that_ends_half_way_leaves_nothing_behind_and_is_read_again(monkeypatch):
    append()
    with monkeypatch.context() as patch:
        patch.setattr(QuerySet, "bulk_update", Mock(side_effect=OperationalError("gone")))
        with pytest.raises(OperationalError):
            Recorder().step()
    assert not PresenceTransition.objects.exists()
    Recorder().step()
    assert PresenceTransition.objects.count() == PresenceRecord.objects.count() == 1


def test_recorder_that_lost_the_race_for_a_batch_leaves_it_to_the_winner(monkeypatch):
    append()
    append("8", unknown_field=1)
    append_raw("{")
    parse, recorder = module.parse_transition, Recorder()

    def parse_slowly(raw: bytes) -> Any:
        monkeypatch.setattr(module, "parse_transition", parse)
        Recorder().step()
        return parse(raw)

    monkeypatch.setattr(module, "parse_transition", parse_slowly)
    recorder.step()
    recorder.step()
    assert PresenceTransition.objects.count() == 2
    assert len(dead_letters()) == 1


def test_stream_that_lost_its_end_is_read_again_without_doubling_anything(caplog):
    before = json.dumps(entry("7"))
    append_raw(before, entry_id="2000-0")
    append_raw(json.dumps(entry("7", "online", "away")), entry_id="3000-0")
    Recorder().step()
    sync_client().delete(store.stream())
    append_raw(before, entry_id="2000-0")
    append_raw(json.dumps(entry("8")), entry_id="2500-0")
    Recorder().step()
    assert "lost its end" in caplog.text
    recorded = PresenceTransition.objects.order_by("entry_id").values_list("entry_id", flat=True)
    assert list(recorded) == ["2000-0", "2500-0", "3000-0"]
    assert record("7").status == "online"
    assert record("8").status == "online"


def test_stream_that_lost_its_end_is_read_again_though_no_command_failed_and_newer_entries_follow():
    """A fail-over between two reads: the new primary's clock is behind, and then ahead of the cursor."""
    recorder = Recorder()
    append_raw(json.dumps(entry("7")), entry_id="2000-0")
    append_raw(json.dumps(entry("lost")), entry_id="3000-0")
    recorder.step()
    sync_client().delete(store.stream())
    for entry_id, user_id in (("2000-0", "7"), ("2999-0", "8"), ("3001-0", "9")):
        append_raw(json.dumps(entry(user_id)), entry_id=entry_id)
    assert recorder.step(wait=True)
    recorded = PresenceTransition.objects.order_by("entry_id").values_list("user_id", flat=True)
    assert list(recorded) == ["7", "8", "lost", "9"]
    assert StreamCursor.objects.get().entry_id == "3001-0"


def test_stream_that_is_lost_again_while_another_recorder_begins_anew_is_read_from_its_beginning(monkeypatch):
    slow, other = Recorder(), Recorder()
    append_raw(json.dumps(entry("7")), entry_id="2000-0")
    slow.step()

    def lose(*user_ids: str, since: int) -> None:
        sync_client().delete(store.stream())
        for number, user_id in enumerate(user_ids):
            append_raw(json.dumps(entry(user_id)), entry_id=f"{since + 1500 * number}-0")

    def begin_again(message: str, **_: Any) -> None:
        """The slow recorder has found that the cursor is lost: before it does anything, all this happens."""
        monkeypatch.undo()
        other.step()
        lose("below", "above", since=1002)

    lose("8", "9", since=1001)
    monkeypatch.setattr(module.logger, "warning", begin_again)
    slow.step()
    slow.step()
    recorded = PresenceTransition.objects.order_by("id").values_list("user_id", flat=True)
    assert list(recorded) == ["7", "8", "9", "below", "above"]


def test_stream_whose_old_entries_were_removed_is_not_read_again(caplog):
    recorder = Recorder()
    for number in range(1, 4):
        append_raw(json.dumps(entry(str(number))), entry_id=f"{number}000-0")
        recorder.step()
    sync_client().xtrim(store.stream(), minid="3001-0", approximate=False)
    assert recorder.step()
    append_raw(json.dumps(entry("4")), entry_id="4000-0")
    assert recorder.step()
    assert PresenceTransition.objects.count() == 4
    assert "lost its end" not in caplog.text


# --- What is no transition -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("{", "invalid_transition: Input data was truncated"),
        ("[]", "Expected `object`, got `array`"),
        (
            json.dumps(entry(namespace="elsewhere")),
            "namespace: expected one of ['hub', 'portal'], got 'elsewhere'",
        ),
        (json.dumps(entry(at="2026-03-01T09:00:00")), "Expected `datetime` with a timezone component"),
        (json.dumps(entry(at="0001-01-01T00:00:00+12:00")), "date value out of range"),
        (json.dumps(entry(groups=["two:words"])), "expected a group name"),
        (json.dumps(entry(reason="r" * 33)), "length <= 32"),
        (
            json.dumps(entry())[:-1] + ', "more": ' + "[" * 50_000 + "]" * 50_000 + "}",
            "nested more than 128 levels",
        ),
    ],
    ids=["json", "array", "namespace", "no zone", "no date", "group", "reason", "depth"],
)
def test_entry_that_is_no_transition_becomes_a_dead_letter_and_holds_nothing_up(raw: str, why: str):
    append_raw(raw)
    append("8")
    Recorder().step()
    [letter] = dead_letters()
    assert why in letter[b"reason"].decode()
    assert letter[b"source"] == b"presence"
    assert letter[b"message"] == raw.encode()[:4096]
    assert [line.user_id for line in PresenceTransition.objects.all()] == ["8"]


def test_entry_without_the_field_becomes_a_dead_letter():
    append_raw("x", field="other")
    Recorder().step()
    [letter] = dead_letters()
    assert b"no field 'transition'" in letter[b"reason"]
    assert b"other" in letter[b"message"]


def test_batch_whose_dead_letter_cannot_be_kept_is_not_recorded(monkeypatch):
    append()
    append_raw("{")
    with monkeypatch.context() as patch:
        patch.setattr(Redis, "xadd", Mock(side_effect=OperationalError("gone")))
        with pytest.raises(OperationalError):
            Recorder().step()
    assert not PresenceTransition.objects.exists()
    Recorder().step()
    assert PresenceTransition.objects.count() == len(dead_letters()) == 1


# --- Going on --------------------------------------------------------------------------------------


def task_failures() -> float:
    return REGISTRY.get_sample_value("realtime_task_failures_total", {"task": "recorder"}) or 0.0


def test_outage_is_one_warning_each_time_and_everything_is_recorded_afterwards(monkeypatch, caplog):
    append()
    outages = (OperationalError("the database is gone"), RedisConnectionError("gone"))
    with caplog.at_level(logging.WARNING):
        ready, waited = run(monkeypatch, *outages, None, None)
    assert [line.exc_info for line in caplog.records if "trying again" in line.message] == [None, None]
    assert record().status == "online"
    assert (ready, waited) == (1, [False, True])


def test_unexpected_failure_is_logged_and_counted_and_recording_goes_on(monkeypatch, caplog):
    append()
    before = task_failures()
    run(monkeypatch, RuntimeError("injected"), None)
    assert task_failures() == before + 1
    assert "RuntimeError: injected" in caplog.text
    assert record().status == "online"


@pytest.mark.parametrize(
    "error", [DataError("out of range"), IntegrityError("no such row"), OverflowError("odd")]
)
def test_entry_that_the_database_refuses_is_a_dead_letter_and_all_others_are_recorded(error, monkeypatch):
    write = history.write

    def refuse_odd(transitions: dict[str, Any]) -> None:
        if any(transition.user_id == "odd" for transition in transitions.values()):
            raise error
        write(transitions)

    monkeypatch.setattr(history, "write", refuse_odd)
    for user_id in ("1", "odd", "2"):
        append(user_id)
    assert Recorder().step()
    assert set(PresenceTransition.objects.values_list("user_id", flat=True)) == {"1", "2"}
    assert [letter[b"reason"].partition(b":")[0] for letter in dead_letters()] == [b"refused"]
    append("3")
    assert Recorder().step()
    assert PresenceTransition.objects.count() == 3


def test_a_recorder_that_has_caught_up_waits_for_news():
    recorder = Recorder()
    assert recorder.step(wait=True)
    append()
    assert recorder.step(wait=True)
    assert record().status == "online"
    assert str(StreamCursor.objects.get()).startswith(store.stream())


def test_models_and_migrations_agree():
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)
