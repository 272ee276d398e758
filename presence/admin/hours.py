"""How long each user was online and away per day, summed by the database from the recorded history.

A status lasts from its transition to the next one of the same user, the last one until now; a span that reaches over
midnight counts for each of its days. Days are those of the current time zone, with 23 or 25 hours when its clocks
are changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

from django.db import NotSupportedError, connections, router
from django.utils import timezone

from presence.models import PresenceRecord, PresenceTransition
from presence.namespaces import OLDEST as HUB


@dataclass(frozen=True, slots=True)
class Day:
    """A day and its first moment, which is the end of the day before."""

    date: date
    opens: datetime
    closes: datetime


@dataclass(frozen=True, slots=True)
class Hours:
    """Seconds of one day, or of several."""

    online: float = 0.0
    away: float = 0.0

    def __add__(self, other: Hours) -> Hours:
        return Hours(self.online + other.online, self.away + other.away)


def days(first: date, last: date) -> list[Day]:
    """Every day from the first to the last, in the current time zone."""
    zone = timezone.get_current_timezone()
    dates = [first + timedelta(number) for number in range((last - first).days + 2)]
    midnights = [datetime.combine(each, time.min, tzinfo=zone) for each in dates]
    return [Day(*each) for each in zip(dates, midnights, midnights[1:], strict=False)]


_WORDS = {
    "sqlite": {
        "moment": "%s",  # text, as Django stores it: it sorts like time
        "earlier": "MIN",
        "later": "MAX",
        "seconds": "(julianday({end}) - julianday({begin})) * 86400.0",
    },
    "postgresql": {
        "moment": "CAST(%s AS timestamptz)",
        "earlier": "LEAST",
        "later": "GREATEST",
        "seconds": "EXTRACT(EPOCH FROM ({end}) - ({begin}))",
    },
}

_SQL = """
WITH days (number, opens, closes) AS (VALUES {days}),
people (user_id, since) AS (
    SELECT record.user_id, COALESCE(
        (SELECT MAX(at) FROM {history} WHERE user_id = record.user_id AND namespace = %s AND at <= {moment}),
        {moment}
    )
    FROM {records} record WHERE record.namespace = %s AND record.user_id IN ({users})
),
spans (user_id, status, began, ended) AS (
    SELECT history.user_id, history.to_status, history.at, COALESCE(
        LEAD(history.at) OVER (PARTITION BY history.user_id ORDER BY history.at, history.id), {moment}
    )
    FROM people JOIN {history} history ON history.user_id = people.user_id
    WHERE history.namespace = %s AND history.at >= people.since AND history.at < {moment}
)
SELECT spans.user_id, days.number, spans.status, SUM({seconds})
FROM spans JOIN days ON spans.began < days.closes AND spans.ended > days.opens
WHERE spans.status IN ('online', 'away') AND spans.ended > spans.began
GROUP BY spans.user_id, days.number, spans.status
"""


def hours(users: Sequence[str], over: Sequence[Day], now: datetime | None = None) -> dict[str, list[Hours]]:
    """The hours of each of these users on each of the days: one query, however long the history is.

    Raises `django.db.NotSupportedError` on a database that is neither SQLite nor PostgreSQL.
    """
    found = {user: [Hours()] * len(over) for user in users}
    if not users or not over:
        return found
    connection = connections[router.db_for_read(PresenceTransition)]
    if (words := _WORDS.get(connection.vendor)) is None:
        raise NotSupportedError(f"expected SQLite or PostgreSQL, got {connection.vendor}")
    adapt = connection.ops.adapt_datetimefield_value
    seconds = words["seconds"].format(
        end=f"{words['earlier']}(spans.ended, days.closes)",
        begin=f"{words['later']}(spans.began, days.opens)",
    )
    sql = _SQL.format(
        days=", ".join([f"(%s, {words['moment']}, {words['moment']})"] * len(over)),
        users=", ".join(["%s"] * len(users)),
        moment=words["moment"],
        seconds=seconds,
        history=connection.ops.quote_name(PresenceTransition._meta.db_table),
        records=connection.ops.quote_name(PresenceRecord._meta.db_table),
    )
    first, last = adapt(over[0].opens), adapt(over[-1].closes)
    parameters: list[Any] = []
    for number, day in enumerate(over):
        parameters += [number, adapt(day.opens), adapt(day.closes)]
    parameters += [HUB, first, first, HUB, *users, adapt(now or timezone.now()), HUB, last]
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        for user, number, status, total in cursor.fetchall():
            lasted = Hours(**{status: float(total)})
            found[user][number] += lasted
    return found


CHUNK = 100
"""Users in one query."""


def of_many(over: Sequence[Day], users: Sequence[str]) -> Iterator[tuple[str, list[Hours]]]:
    """The hours of any number of users, in their order, with one query for each `CHUNK`."""
    now = timezone.now()
    for start in range(0, len(users), CHUNK):
        yield from hours(users[start : start + CHUNK], over, now).items()
