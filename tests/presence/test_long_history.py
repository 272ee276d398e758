"""Two months of 200 people: what is read of 100,000 rows, and that the sums are right."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from presence.admin import hours as counting
from presence.admin.hours import Hours, days, hours
from presence.models import PresenceRecord, PresenceTransition
from tests.presence.support import CSV, PEOPLE, PERSON, Changes, at, transitions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.django_db,
    pytest.mark.usefixtures("realtime_redis", "recorded"),
    pytest.mark.filterwarnings("ignore:No directory at"),
]

USERS = 200
ROWS = 100_000
NOW = at("2026-03-31T15:00")
ZONE = ZoneInfo("America/Sao_Paulo")
DATES = [date(2026, 3, 1) + timedelta(number) for number in range(31)]
SPAN = {"begin": "2026-03-01", "end": "2026-03-31"}


def history(seed: int) -> dict[str, Changes]:
    """Two months of 200 people who come and go at any time of the day and night."""
    dice = random.Random(seed)
    found: dict[str, Changes] = {}
    for user in range(USERS):
        moment, status, changes = at("2026-01-25T08:00"), "offline", []
        for _ in range(ROWS // USERS):
            moment += timedelta(seconds=dice.expovariate(1 / (64 * 86400 / (ROWS / USERS))))
            moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
            status = dice.choice([each for each in ("online", "away", "offline") if each != status])
            changes.append((min(moment, NOW), status))
        found[f"u{user:03}"] = changes
    return found


@pytest.fixture(scope="module")
def recorded(django_db_setup: None, django_db_blocker: Any) -> Iterator[dict[str, Changes]]:
    """The rows, for all tests of this file: to write them takes longer than what is done with them."""
    found = history(7)
    with django_db_blocker.unblock():
        PresenceRecord.objects.bulk_create(
            PresenceRecord(
                namespace="hub", user_id=user, name=f"Name {user}", status="offline", since=NOW, updated=NOW
            )
            for user in found
        )
        PresenceTransition.objects.bulk_create(
            (row for user, changes in found.items() for row in transitions(user, changes)), batch_size=5000
        )
        assert PresenceTransition.objects.count() == ROWS
    yield found
    with django_db_blocker.unblock():
        call_command("flush", verbosity=0, interactive=False)


def reference(changes: Changes) -> dict[date, Hours]:
    """The same sums, second by second of the calendar and without any SQL."""
    found: dict[date, Hours] = defaultdict(Hours)
    times = [*(moment.timestamp() for moment, _ in changes), NOW.timestamp()]
    for day in DATES:
        opens, closes = (
            datetime.combine(each, time.min, tzinfo=ZONE).timestamp() for each in (day, day + timedelta(1))
        )
        for (_, status), began, ended in zip(changes, times, times[1:], strict=False):
            lasted = min(ended, closes) - max(began, opens)
            if status != "offline" and lasted > 0:
                found[day] += Hours(**{status: lasted})
    return found


def close(one: Hours, other: Hours) -> bool:
    return abs(one.online - other.online) < 0.01 and abs(one.away - other.away) < 0.01


def plan_of(sql: str) -> list[str]:
    """The steps of SQLite's plan for a query; none on another database."""
    if connection.vendor != "sqlite":
        return []
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN QUERY PLAN " + sql)
        return [row[3] for row in cursor.fetchall()]


def test_hundred_thousand_rows_are_summed_in_one_query_and_right(recorded: dict[str, Changes]):
    with timezone.override(ZONE):
        over = days(DATES[0], DATES[-1])
        with CaptureQueriesContext(connection) as queries:
            found = hours([*recorded], over, NOW)
    assert len(queries) == 1
    for user, changes in recorded.items():
        expected = reference(changes)
        for day, each in zip(over, found[user], strict=True):
            assert close(each, expected[day.date]), (user, day.date)


def test_page_and_export_of_all_cost_about_as_many_queries_as_of_one(admin_client: Client):
    def cost(url: str, **query: str) -> int:
        with CaptureQueriesContext(connection) as queries:
            response = admin_client.get(url, {**SPAN, **query})
            assert response.status_code == 200
            if response.streaming:
                assert b"".join(response)
        return len(queries)

    admin_client.get(reverse(PEOPLE), SPAN)  # what is read once per process
    page = cost(reverse(PEOPLE))
    assert page == cost(reverse(PEOPLE), q="u007") <= 6
    assert cost(reverse(PERSON, args=["u007"])) <= 5
    assert cost(reverse(CSV)) <= cost(reverse(CSV), user="u007") + USERS // counting.CHUNK


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("admin:presence_presencerecord_changelist", {}),
        ("admin:presence_presencerecord_changelist", {"status__exact": "offline"}),
        ("admin:presence_presencetransition_changelist", {}),
        ("admin:presence_presencetransition_changelist", {"p": "100"}),
        ("admin:presence_presencetransition_changelist", {"day": "2026-03-02"}),
        ("admin:presence_presencetransition_changelist", {"user_id": "u007", "namespace": "hub"}),
        (PEOPLE, SPAN),
        ("admin:presence_live_log", {}),
    ],
)
def test_no_page_reads_a_whole_table(admin_client: Client, name: str, query: dict[str, str]):
    with CaptureQueriesContext(connection) as queries:
        page = admin_client.get(reverse(name), query)
    assert page.status_code == 200
    assert len(queries) <= 12
    assert len(page.content) < 300_000
    for each in queries:
        sql = each["sql"]
        assert "COUNT(" not in sql or "LIMIT 10001" in sql, sql
        assert "DISTINCT" not in sql, sql
        if sql.startswith("WITH"):  # the hours of the people on the page
            plan = "\n".join(plan_of(sql))
            assert "SCAN history" not in plan
            found = plan.count("USING INDEX presence_history_user") + plan.count("COVERING INDEX")
            assert found >= 2 or not plan, plan
        elif sql.startswith("SELECT") and "presence_" in sql and "_groups" not in sql:
            plan_ = plan_of(sql)
            assert not [step for step in plan_ if "TEMP B-TREE FOR ORDER BY" in step], (sql, plan_)
            whole = [step for step in plan_ if step.startswith("SCAN presence_") and "INDEX" not in step]
            assert [step for step in whole if "group" not in step] == [], (sql, plan_)
