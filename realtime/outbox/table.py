"""What the outbox asks of its table, in one database: rows, claims, deletion, a sign to the relays.

All times are those of the database's clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import connections, router, transaction
from django.db.models import Case, Q, QuerySet, Value, When
from django.db.models.functions import Length, Now

from realtime.conf import conf
from realtime.outbox.models import SEPARATOR, OutboxMessage

CHANNEL = "realtime_outbox"
"""PostgreSQL's channel on which relays are told that a row is due."""
WINDOW = 2000
"""Rows, the oldest of the table, among which a sender looks for what it may send and for what has to be sent before."""
LONGEST_CLAIM = 60.0
"""Seconds beyond its waits for Redis for which no sender claims a row. One that is due later was written before the
clock was set back."""


def default_database() -> str:
    """The alias of the database that the routers choose for the table."""
    return router.db_for_write(OutboxMessage)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row of the table, without its message."""

    id: int
    rooms: frozenset[str]
    size: int
    is_due: bool
    claim: str


def rows(using: str) -> QuerySet[OutboxMessage]:
    """The rows of one database."""
    return OutboxMessage.objects.using(using)


def has_skip_locked(using: str) -> bool:
    """Whether a claim is a lock on the row (`FOR UPDATE SKIP LOCKED`). If not, it is a lease."""
    features: Any = connections[using].features
    return bool(features.has_select_for_update_skip_locked)


def insert(using: str, message: bytes, rooms: Collection[str], claim: str, due_in: float) -> int:
    """Write a row, in the transaction that is open; returns its id."""
    row = OutboxMessage(
        message=message,
        rooms=_joined(rooms),
        created_at=Now(),
        due_at=_in(due_in),
        claim=claim,
    )
    row.save(using=using, force_insert=True)
    return row.pk


def _in(seconds: float) -> Any:
    return Now() + timedelta(seconds=seconds) if seconds else Now()


def _due() -> Q:
    longest = conf().outbox_wait + conf().publish_timeout + LONGEST_CLAIM
    return Q(due_at__lte=Now()) | Q(due_at__gt=_in(longest))


def oldest(using: str, without: Collection[frozenset[str]] = ()) -> list[Waiting]:
    """The oldest rows, at most `WINDOW`, in their order, as they are at one moment.

    Rows of exactly these sets of rooms are left out.
    """
    is_due = Case(When(_due(), then=Value(1)), default=Value(0))
    found = rows(using).order_by("id").values_list("id", "rooms", Length("message"), is_due, "claim")
    if without:
        found = found.exclude(rooms__in=[_joined(rooms) for rooms in without])
    return [
        Waiting(number, frozenset(rooms.split(SEPARATOR)), size, bool(due), claim)
        for number, rooms, size, due, claim in found[:WINDOW]
    ]


def _joined(rooms: Collection[str]) -> str:
    return SEPARATOR.join(sorted(rooms))


def messages(using: str, ids: Collection[int]) -> dict[int, bytes]:
    """The messages of these rows, as far as they exist."""
    found = rows(using).filter(pk__in=ids).values_list("pk", "message")
    return {number: bytes(message) for number, message in found}


# --- Claims ------------------------------------------------------------------------------------------


@contextmanager
def locked(using: str, ids: Collection[int]) -> Iterator[set[int]]:
    """Lock those of these rows that no other sender has locked, for the length of a transaction."""
    is_outermost = not connections[using].in_atomic_block
    with transaction.atomic(using=using):
        if is_outermost:
            _see_what_is_committed(using)
        lockable = rows(using).filter(pk__in=ids).order_by("pk").select_for_update(skip_locked=True)
        yield set(lockable.values_list("pk", flat=True))


def _see_what_is_committed(using: str) -> None:
    """Make this transaction READ COMMITTED, whatever is usual in this database.

    With a stricter level PostgreSQL refuses to lock what another sender has just deleted, and MySQL also locks the gap
    behind the newest row, into which requests insert.
    """
    if connections[using].vendor in ("postgresql", "mysql"):
        with connections[using].cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


def lease(using: str, ids: Collection[int], claim: str, seconds: float) -> set[int]:
    """Claim those of these rows that are due, or carry this claim already; returns the ids that the claim holds now."""
    claimable = rows(using).filter(_due() | Q(claim=claim), pk__in=ids)
    claimable.update(claim=claim, due_at=_in(seconds))
    return still_leased(using, ids, claim)


def still_leased(using: str, ids: Collection[int], claim: str) -> set[int]:
    """Those of these rows that this claim holds: its time is not over, and no other sender has taken them."""
    held = rows(using).filter(pk__in=ids, claim=claim, due_at__gt=Now())
    return set(held.values_list("pk", flat=True))


def release(using: str, ids: Collection[int], claim: str) -> None:
    """Make rows due at once that this claim holds, or that are not locked, and tell the relays.

    It never waits for another sender: a row that another one has locked is being sent.
    """
    if has_skip_locked(using):
        with locked(using, ids) as held:
            rows(using).filter(pk__in=held).update(due_at=Now())
        notify(using)
    else:
        rows(using).filter(pk__in=ids, claim=claim).update(due_at=Now(), claim="")


def make_due(using: str, ids: Collection[int]) -> None:
    """Let relays take these rows at once; only a lock holds a row back."""
    with _not_locked(using, ids) as free:
        rows(using).filter(pk__in=free).update(due_at=Now(), claim="")
    notify(using)


def delete(using: str, ids: Collection[int], lease: str = "") -> None:
    """Delete rows; with a lease only those that it still holds.

    It is one statement. A QuerySet would open a transaction for it, and every message would wait for two more answers.
    """
    connection = connections[using]
    name = connection.ops.quote_name
    where = f"{name('id')} IN ({', '.join(['%s'] * len(ids))})"
    values: list[Any] = [*ids]
    if lease:
        where += f" AND {name('claim')} = %s"
        values.append(lease)
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {name(OutboxMessage._meta.db_table)} WHERE {where}", values)  # noqa: S608


def drop(using: str, ids: Collection[int]) -> int:
    """Delete rows without sending them, except those that are being sent; returns how many."""
    with _not_locked(using, ids) as free:
        return rows(using).filter(_due(), pk__in=free).delete()[0]


@contextmanager
def _not_locked(using: str, ids: Collection[int]) -> Iterator[Collection[int]]:
    """The rows that no sender has locked, in a transaction; all rows on a database whose claims are not locks."""
    if has_skip_locked(using):
        with locked(using, ids) as held:
            yield held
    else:
        yield ids


# --- Relays ------------------------------------------------------------------------------------------


def notify(using: str) -> None:
    """Tell the relays that listen (PostgreSQL) that a row is due; in a transaction, at its commit."""
    if connections[using].vendor == "postgresql":
        with connections[using].cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, '')", [CHANNEL])


def backlog(using: str) -> tuple[int, float]:
    """The number of rows, and the age in seconds of the oldest; 0.0 when there is none."""
    for created_at, current in rows(using).order_by("id").values_list("created_at", Now())[:1]:
        return rows(using).count(), max((current - created_at).total_seconds(), 0.0)
    return 0, 0.0


def older_than(using: str, seconds: float) -> QuerySet[OutboxMessage]:
    """The rows that were written longer ago than this."""
    return rows(using).filter(created_at__lt=Now() - timedelta(seconds=seconds))


def exists(using: str) -> bool:
    """Whether the table is there. Raises `django.db.Error` when the database does not answer."""
    connection = connections[using]
    with connection.cursor() as cursor:
        return OutboxMessage._meta.db_table in connection.introspection.table_names(cursor)
