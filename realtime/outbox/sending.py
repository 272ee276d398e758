"""Sending rows: by the request that wrote them, and by relays, in order per room.

A row is sent only when no older row of one of its rooms exists outside the claim of the same sender. What a transaction
has written after the commit of another has a higher id, and finds the other's rows, unless Redis has their messages.
Rows are read first and claimed then, so a sender seldom claims a row that it leaves out, and the sender of the row
before it finds it. A transaction writes its rows with a lease, so that its own sender, which nearly always finds no
others, has to claim nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

from redis.exceptions import RedisError

from realtime.conf import conf
from realtime.layers.direct import direct
from realtime.outbox import table
from realtime.outbox.table import Waiting
from realtime.redis.appending import append

BATCH_ROWS = 500
BATCH_BYTES = 1024 * 1024
"""Bounds of what is sent at once; a single message may be larger."""
LEASE_MARGIN = 5.0
"""Seconds by which a lease outlives the wait for Redis."""

PAGES = 5
"""How often a relay looks further when the oldest rows cannot be sent, without those of the rooms it has seen."""

TRIES = 8
"""How often a sender tries other rows of a page, because other senders have those that it tried."""

Wanted = Callable[[Waiting], bool]


@dataclass(frozen=True, slots=True)
class Sender:
    """A claim on rows of one database: that of a transaction that wrote them, or of a relay."""

    using: str
    claim: str
    messages: Mapping[int, bytes]
    """Those that the transaction has written itself, by the ids of their rows."""
    leased_until: float = 0.0
    """The time, of `realtime.redis.bounded.now`, until which no other sender takes these."""
    tried: set[int] = field(default_factory=set)
    """The ids of the rows whose messages went to Redis last."""


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


def send(by: Sender, wanted: Wanted, until: float, most: int = BATCH_ROWS, pages: int = 1) -> Sent:
    """Send those of the oldest rows that are wanted and that no other row has to precede, at most `most`.

    Args:
        by: The sender.
        wanted: Which rows to send.
        until: The time, of `realtime.redis.bounded.now`, at which the wait for Redis ends.
        most: The largest number of rows.
        pages: How often to look.

    Raises:
        redis.RedisError: When Redis has not confirmed them; they stay.
        django.db.Error: When the database fails.
    """
    search = _Search(wanted)
    for _ in range(pages):
        page = table.oldest(by.using, search.passed)
        for _ in range(TRIES):
            if not (chosen := search.choose(page, most)):
                break
            if sent := _send(by, chosen, until):
                rooms = frozenset[str]().union(*[row.rooms for row in sent])
                return Sent(frozenset(row.id for row in sent), rooms)
            search.leave(chosen)
        else:
            break
        if len(page) < table.WINDOW:
            break
        search.pass_over(page)
    return Sent(is_waiting=search.has_seen_wanted)


class _Search:
    """What a sender may send of the rows that it sees. A room of a row that it leaves out is blocked.

    Each page is what the table held at one moment: if it has a row, it has each row that was committed before the
    transaction of that one began. So it begins with the oldest row each time, without those that are blocked anyway.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._left: set[int] = set()
        self.passed: set[frozenset[str]] = set()
        """The sets of rooms of the rows that it has seen, all of them blocked."""
        self.has_seen_wanted = False

    def choose(self, page: Iterable[Waiting], most: int) -> list[Waiting]:
        blocked = set[str]().union(*self.passed)
        return choose(page, self._is_wanted, most, blocked)

    def _is_wanted(self, row: Waiting) -> bool:
        if not self._wanted(row):
            return False
        self.has_seen_wanted = True
        return row.id not in self._left

    def leave(self, rows: Iterable[Waiting]) -> None:
        """Other senders have these."""
        self._left |= {row.id for row in rows}

    def pass_over(self, page: Iterable[Waiting]) -> None:
        """Nothing of this page can be sent."""
        self.passed |= {row.rooms for row in page}


def choose(
    waiting: Iterable[Waiting], wanted: Wanted, most: int, blocked: Iterable[str] = ()
) -> list[Waiting]:
    """The first wanted rows that share no room with an older row that is left out, nor with what is blocked."""
    chosen: list[Waiting] = []
    blocked = set(blocked)
    size = 0
    for row in waiting:
        if not wanted(row) or not row.rooms.isdisjoint(blocked):
            blocked |= row.rooms
            continue
        size += row.size
        if chosen and (len(chosen) >= most or size > BATCH_BYTES):
            break
        chosen.append(row)
    return chosen


def _send(by: Sender, chosen: Sequence[Waiting], until: float) -> list[Waiting]:
    """Send those of these rows that are to be had; returns them."""
    with _claimed(by, chosen, until) as (held, lease):
        rows = choose(chosen, lambda row: row.id in held, len(chosen))
        messages = _messages(by, rows)
        by.tried.clear()
        by.tried.update(row.id for row in rows)
        if messages:
            append(messages, until, direct(messages))
        if rows:
            table.delete(by.using, [row.id for row in rows], lease)
        if len(rows) < len(held) and lease:
            table.release(by.using, held, lease)
    return rows


def _messages(by: Sender, rows: Sequence[Waiting]) -> list[bytes]:
    # An id alone is not enough: SQLite gives that of a row that was rolled back to another transaction's.
    known = {row.id: by.messages[row.id] for row in rows if row.claim == by.claim and row.id in by.messages}
    missing = [row.id for row in rows if row.id not in known]
    found = {**known, **(table.messages(by.using, missing) if missing else {})}
    return [found[row.id] for row in rows if row.id in found]  # an operator may have dropped one


@contextmanager
def _claimed(by: Sender, rows: Sequence[Waiting], until: float) -> Iterator[tuple[Collection[int], str]]:
    """Claim rows for the context; yields the ids of those that were to be had, and the lease if it is one.

    With locks, an error rolls the transaction back. With leases no transaction is open: SQLite would lock out every
    writer. What an error leaves behind is given back, and the lease of a process that dies ends by itself.
    """
    ids = [row.id for row in rows]
    is_leased = until <= by.leased_until and all(row.claim == by.claim and not row.is_due for row in rows)
    if is_leased:
        yield ids, by.claim
    elif table.has_skip_locked(by.using):
        with table.locked(by.using, ids) as held:
            yield held, ""
    else:
        try:
            seconds = conf().publish_timeout + LEASE_MARGIN
            yield table.lease(by.using, ids, by.claim, seconds), by.claim
        except RedisError:
            table.release(by.using, ids, by.claim)
            raise
