"""Sending rows: by the request that wrote them, and by relays, in order per room.

A row is sent only when no older row of one of its rooms exists outside the claim of the same sender. What a transaction
has written after the commit of another has a higher id, and finds the other's rows, unless Redis has their messages.
Rows are read first and claimed then, so a sender seldom locks a row that it leaves out, and the sender of the row
before it finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from redis.exceptions import RedisError

from realtime.conf import conf
from realtime.outbox import table
from realtime.outbox.table import Waiting
from realtime.redis.appending import append

BATCH_ROWS = 500
BATCH_BYTES = 1024 * 1024
"""Bounds of what is sent at once; a single message may be larger."""
LEASE_MARGIN = 5.0
"""Seconds by which a lease outlives the wait for Redis."""

Wanted = Callable[[Waiting], bool]


@dataclass(frozen=True, slots=True)
class Sender:
    """A claim on rows of one database: that of a transaction that wrote them, or of a relay."""

    using: str
    claim: str
    messages: Mapping[int, bytes]
    """Those that the transaction has written itself, by the ids of their rows."""


def sender(using: str) -> Sender:
    """A sender that has written nothing itself."""
    return Sender(using, uuid4().hex, {})


@dataclass(frozen=True, slots=True)
class Sent:
    """What one attempt has sent."""

    ids: frozenset[int] = frozenset()
    rooms: frozenset[str] = frozenset()
    is_waiting: bool = False
    """Nothing was sent, although wanted rows exist: another row has to precede them, or another sender has them."""


def send(by: Sender, wanted: Wanted, until: float, most: int = BATCH_ROWS) -> Sent:
    """Send those of the oldest rows that are wanted and that no other row has to precede, at most `most`.

    Args:
        by: The sender.
        wanted: Which rows to send.
        until: The time, of `realtime.redis.bounded.now`, at which the wait for Redis ends.
        most: The largest number of rows.

    Raises:
        redis.RedisError: When Redis has not confirmed them; they stay.
        django.db.Error: When the database fails.
    """
    waiting = table.oldest(by.using)
    candidates = choose(waiting, wanted, None if table.has_skip_locked(by.using) else most)
    if not candidates:
        return Sent(is_waiting=any(map(wanted, waiting)))
    with _claimed(by, candidates, most) as held:
        rows = choose(waiting, lambda row: row.id in held, most)
        if rows:
            append(_messages(by, rows), until)
            table.delete(by.using, [row.id for row in rows], _lease_of(by))
        if len(rows) < len(held) and _lease_of(by):
            table.release(by.using, held, by.claim)
    rooms = frozenset[str]().union(*[row.rooms for row in rows])
    return Sent(frozenset(row.id for row in rows), rooms, is_waiting=not rows)


def choose(waiting: Iterable[Waiting], wanted: Wanted, most: int | None) -> list[Waiting]:
    """The wanted rows that share no room with an older row that is left out; `None`: without bounds."""
    chosen: list[Waiting] = []
    blocked: set[str] = set()
    size = 0
    for row in waiting:
        if not wanted(row) or not row.rooms.isdisjoint(blocked):
            blocked |= row.rooms
            continue
        size += row.size
        if most is not None and chosen and (len(chosen) >= most or size > BATCH_BYTES):
            break
        chosen.append(row)
    return chosen


def _messages(by: Sender, rows: Sequence[Waiting]) -> list[bytes]:
    # An id alone is not enough: SQLite gives that of a row that was rolled back to another transaction's.
    known = {row.id: by.messages[row.id] for row in rows if row.claim == by.claim and row.id in by.messages}
    missing = [row.id for row in rows if row.id not in known]
    found = {**known, **(table.messages(by.using, missing) if missing else {})}
    return [found[row.id] for row in rows]


@contextmanager
def _claimed(by: Sender, rows: Sequence[Waiting], most: int) -> Iterator[Collection[int]]:
    """Claim rows for the context; yields the ids of those that were to be had.

    With locks, an error rolls the transaction back. With leases no transaction is open: SQLite would lock out every
    writer. A lease that an error leaves behind is given back, and that of a process that dies ends by itself.
    """
    ids = [row.id for row in rows]
    if table.has_skip_locked(by.using):
        with table.locked(by.using, ids, most) as held:
            yield held
        return
    try:
        yield _lease(by, rows, ids)
    except RedisError:
        table.release(by.using, ids, by.claim)
        raise


def _lease(by: Sender, rows: Sequence[Waiting], ids: Sequence[int]) -> Collection[int]:
    if all(row.claim == by.claim and not row.is_due for row in rows):
        return ids  # it was read just now that the lease of the transaction that wrote them holds
    return table.lease(by.using, ids, by.claim, conf().publish_timeout + LEASE_MARGIN)


def _lease_of(by: Sender) -> str:
    return "" if table.has_skip_locked(by.using) else by.claim
