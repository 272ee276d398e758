"""Hours a day of each attendant: the sums."""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo

import pytest
from django.db import NotSupportedError, connections
from django.utils import timezone

from presence.admin.hours import Hours, days, hours
from tests.presence.support import at, attend

pytestmark = pytest.mark.django_db

SAO_PAULO, BERLIN = ZoneInfo("America/Sao_Paulo"), ZoneInfo("Europe/Berlin")


def counted(user: str, first: str, last: str, now: datetime) -> dict[str, tuple[int, int]]:
    """Minutes online and away, of the days on which there are any."""
    over = days(date.fromisoformat(first), date.fromisoformat(last))
    found = hours([user], over, now)[user]
    return {
        str(day.date): (round(each.online / 60), round(each.away / 60))
        for day, each in zip(over, found, strict=True)
        if each != Hours()
    }


def test_status_lasts_until_the_next_one():
    changes = [
        (at("2026-03-02T09:00"), "online"),
        (at("2026-03-02T10:30"), "away"),
        (at("2026-03-02T10:45:30.25"), "online"),
        (at("2026-03-02T12:00"), "offline"),
    ]
    attend("7", changes)
    assert counted("7", "2026-03-01", "2026-03-03", at("2026-03-03T00:00")) == {"2026-03-02": (164, 16)}


def test_night_shift_counts_for_both_days():
    attend(
        "7",
        [
            (at("2026-03-02T22:00"), "online"),
            (at("2026-03-02T23:30"), "away"),
            (at("2026-03-03T01:00"), "online"),
            (at("2026-03-03T02:00"), "offline"),
        ],
    )
    now = at("2026-03-09T00:00")
    assert counted("7", "2026-03-01", "2026-03-05", now) == {"2026-03-02": (90, 30), "2026-03-03": (60, 60)}
    assert counted("7", "2026-03-03", "2026-03-03", now) == {"2026-03-03": (60, 60)}
    assert counted("7", "2026-03-02", "2026-03-02", now) == {"2026-03-02": (90, 30)}


def test_status_that_goes_on_counts_until_now_and_not_longer():
    attend("7", [(at("2026-02-27T12:00"), "away"), (at("2026-03-01T12:00"), "online")])
    assert counted("7", "2026-03-01", "2026-03-04", at("2026-03-02T06:00")) == {
        "2026-03-01": (720, 720),
        "2026-03-02": (360, 0),
    }


def test_status_from_long_before_counts_for_every_day():
    attend("7", [(at("2026-01-01T12:00"), "online")])
    assert counted("7", "2026-03-01", "2026-03-02", at("2026-04-01T00:00")) == {
        "2026-03-01": (1440, 0),
        "2026-03-02": (1440, 0),
    }


def test_who_is_offline_counts_for_nothing():
    attend("7", [(at("2026-03-01T12:00"), "online"), (at("2026-03-01T13:00"), "offline")])
    attend("8", [])
    assert counted("7", "2026-03-02", "2026-03-09", at("2026-03-09T12:00")) == {}
    assert counted("8", "2026-03-02", "2026-03-09", at("2026-03-09T12:00")) == {}
    assert hours(["absent"], days(date(2026, 3, 1), date(2026, 3, 1))) == {"absent": [Hours()]}
    assert hours([], days(date(2026, 3, 1), date(2026, 3, 1))) == {}


def test_changes_in_the_same_moment_count_in_the_order_of_the_stream():
    moment = at("2026-03-02T09:00")
    attend(
        "7", [(moment, "online"), (moment, "away"), (moment, "online"), (at("2026-03-02T10:00"), "offline")]
    )
    assert counted("7", "2026-03-02", "2026-03-02", at("2026-03-03T00:00")) == {"2026-03-02": (60, 0)}


def test_change_at_midnight_sharp_belongs_to_the_new_day():
    attend("7", [(at("2026-03-02T00:00"), "online"), (at("2026-03-03T00:00"), "offline")])
    assert counted("7", "2026-03-01", "2026-03-03", at("2026-03-09T00:00")) == {"2026-03-02": (1440, 0)}


def test_same_id_in_another_namespace_is_another_user():
    attend("7", [(at("2026-03-02T09:00"), "online"), (at("2026-03-02T10:00"), "offline")])
    attend("7", [(at("2026-03-02T09:30"), "away")], namespace="portal")
    assert counted("7", "2026-03-02", "2026-03-02", at("2026-03-03T00:00")) == {"2026-03-02": (60, 0)}


def test_days_begin_where_the_current_time_zone_says():
    attend("7", [(at("2026-03-02T02:00"), "online"), (at("2026-03-02T04:00"), "offline")])
    now = at("2026-03-09T00:00")
    with timezone.override(SAO_PAULO):  # three hours behind UTC
        assert counted("7", "2026-03-01", "2026-03-02", now) == {"2026-03-01": (60, 0), "2026-03-02": (60, 0)}


def test_day_on_which_clocks_are_changed_has_23_or_25_hours():
    attend("7", [(at("2026-01-01T00:00"), "online")])
    with timezone.override(BERLIN):
        found = counted("7", "2026-03-28", "2026-03-30", at("2026-12-01T00:00"))
        assert [online for online, _ in found.values()] == [1440, 1380, 1440]
        found = counted("7", "2026-10-24", "2026-10-26", at("2026-12-01T00:00"))
        assert [online for online, _ in found.values()] == [1440, 1500, 1440]


def test_database_that_was_never_tried_is_refused(monkeypatch):
    monkeypatch.setattr(connections["default"], "vendor", "mysql")
    with pytest.raises(NotSupportedError, match="SQLite or PostgreSQL, got mysql"):
        hours(["7"], days(date(2026, 3, 1), date(2026, 3, 1)))
