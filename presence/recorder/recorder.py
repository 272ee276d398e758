"""From the stream of transitions into the database.

Rows and cursor are written in one transaction, so a recorder may be killed at any moment. Any number of recorders may
run at once: the one that moves the cursor writes the rows, and the others find it moved and read on from there.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import msgspec
from django.db import DataError, IntegrityError, connections, reset_queries, transaction
from django.db import Error as DatabaseError
from django.utils import timezone
from redis.exceptions import RedisError

from presence import store
from presence.events import Transition, parse_transition
from presence.models import NAME_LENGTH, StreamCursor
from presence.namespaces import lists_customers
from presence.recorder import history
from presence.recorder.ghosts import Ghosts
from realtime.bridge.dead_letters import DEAD_LETTER_BYTES, DEAD_LETTERS
from realtime.conf import conf
from realtime.protocol.bus_message import InvalidMessage
from realtime.redis.client import key, sync_client, time_sync
from realtime.tasks.supervision import report
from realtime.telemetry import metrics
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

BATCH = 500
"""Entries in one transaction."""
BEGINNING = "0-0"
PRUNE_SECONDS = 60.0

Fields = Mapping[bytes, bytes]
Entry = tuple[str, Fields]


class Recorder:
    """Records transitions, prunes the history, and has ghosts announced offline, until interrupted."""

    def __init__(self) -> None:
        self._ghosts = Ghosts()
        self._prune_at = 0.0

    def run(self, ready: Callable[[], None]) -> NoReturn:
        """Call `ready` once all entries that were waiting are recorded, and go on for ever.

        During an outage of Redis or of the database it tries again and again.
        """
        failures = 0
        caught_up = False
        while True:
            reset_queries()  # with DEBUG on, Django would keep them
            try:
                if self.step(wait=caught_up) and not caught_up:
                    caught_up = True
                    ready()
                failures = 0
            except Exception as error:
                if not isinstance(error, RedisError | DatabaseError):
                    report("recorder")
                failures += 1
                self._recover(error, failures)

    def step(self, *, wait: bool = False) -> bool:
        """Record new entries, look for ghosts, prune; with `wait`, wait a moment for an entry if there is none.

        Returns whether it has caught up. Raises `redis.RedisError` or `django.db.Error`: then nothing was recorded,
        and it can be called again.
        """
        cursor = self._cursor()
        found = self._read(cursor, wait=wait)
        while _is_lost(cursor, found):  # another recorder may have moved it to one that is lost, too
            cursor = self._begin_again(cursor)
            found = self._read(cursor)
        entries = _behind(cursor, found)[:BATCH]
        if entries:
            self._record_or_skip(cursor, entries)
        if len(entries) == BATCH:
            return False
        self._ghosts.look()
        self._prune()
        return True

    def _recover(self, error: Exception, failures: int) -> None:
        """Start again after a random pause, which grows up to a second."""
        logger.warning("cannot record, trying again", extra={"failures": failures, "error": spelled(error)})
        self._ghosts.forget()
        connections.close_all()
        time.sleep(random.uniform(0.05, min(1.0, 0.1 * 2 ** min(failures, 4))))  # noqa: S311

    # --- The stream ------------------------------------------------------------------------------

    def _cursor(self) -> str:
        """The last entry that any recorder took."""
        return StreamCursor.objects.get_or_create(stream=store.stream())[0].entry_id

    @staticmethod
    def _read(cursor: str, *, wait: bool = False) -> list[Entry]:
        """The entry at the cursor, and those behind it; with `wait`, as they are a moment later if there are none."""
        found = _entries(min=cursor, count=BATCH + 1)
        if wait and not _behind(cursor, found):
            block = max(1, int(conf().batch_interval * 1000))  # 0 would be for ever
            sync_client().xread({store.stream(): cursor}, count=1, block=block)
            found = _entries(min=cursor, count=BATCH + 1)
        return found

    def _begin_again(self, cursor: str) -> str:
        """Read the stream from its beginning; returns the cursor. What is in the database is not written twice."""
        logger.warning("the stream lost its end, reading it again", extra={"cursor": cursor})
        self._move(cursor, BEGINNING)
        return self._cursor()

    # --- The database ----------------------------------------------------------------------------

    def _record_or_skip(self, cursor: str, entries: Sequence[Entry]) -> None:
        """Record entries together, or one by one if the database refuses one, which must not hold up the rest."""
        try:
            self._record(cursor, entries)
        except Exception as error:
            if _is_outage(error):
                raise
            if len(entries) == 1:
                self._skip(cursor, entries[0], error)
                return
            for entry in entries:
                self._record_or_skip(cursor, [entry])
                cursor = entry[0]

    def _skip(self, cursor: str, entry: Entry, error: Exception) -> None:
        report("recorder")
        with transaction.atomic(using=history.database()):
            if self._move(cursor, entry[0]):
                _dead_letter(InvalidMessage("refused", spelled(error)), entry[1])

    def _record(self, cursor: str, entries: Sequence[Entry]) -> None:
        transitions: dict[str, Transition] = {}
        rejected: list[tuple[InvalidMessage, Fields]] = []
        for entry_id, fields in entries:
            try:
                transition = _parse(fields)
                if not lists_customers(transition.namespace):  # no one needs the history of customers
                    transitions[entry_id] = transition
            except InvalidMessage as error:
                rejected.append((error, fields))
        with transaction.atomic(using=history.database()):
            if not self._move(cursor, entries[-1][0]):
                return
            history.write(transitions)
            # After everything that can fail here, before the cursor counts: kept at least once.
            for reason, fields in rejected:
                _dead_letter(reason, fields)
        logger.debug("recorded", extra={"transitions": len(transitions), "cursor": entries[-1][0]})

    @staticmethod
    def _move(cursor: str, to: str) -> bool:
        """Move the cursor, if no other recorder has. An UPDATE locks the row on PostgreSQL and the file on SQLite."""
        here = StreamCursor.objects.filter(stream=store.stream(), entry_id=cursor)
        return bool(here.update(entry_id=to))

    def _prune(self) -> None:
        """Delete transitions older than `PRESENCE_RETENTION`, if it is time: one batch in each step.

        So a backlog of years makes no long transaction and delays no recording.
        """
        now, retention = time.monotonic(), conf().presence_retention
        if not retention or now < self._prune_at:
            return
        today = min(
            timezone.now().timestamp(), time_sync()
        )  # a clock that is ahead must not delete what is young
        pruned = history.prune(datetime.fromtimestamp(today, UTC) - timedelta(seconds=retention))
        if pruned:
            logger.info("history pruned", extra={"transitions": pruned})
        if pruned < history.PRUNE_BATCH:
            self._prune_at = now + PRUNE_SECONDS


def _entries(**which: Any) -> list[Entry]:
    found: Any = sync_client().xrange(store.stream(), **which)
    return [(entry_id.decode(), fields) for entry_id, fields in found]


def _behind(cursor: str, found: Sequence[Entry]) -> Sequence[Entry]:
    """The entries without the one at the cursor."""
    return found[1:] if found and found[0][0] == cursor else found


def _is_lost(cursor: str, found: Sequence[Entry]) -> bool:
    """Whether the stream is not the one in which the cursor was: it has older entries, but not the cursor's.

    A replica that took over without the newest entries, or a Redis that was wiped, with a clock that is behind, gives
    out ids below the cursor, which are never read. It may have given out higher ones, too, before it is asked. (What is
    too old is removed from the beginning on: where the cursor's entry was, there is no older one.)
    """
    is_there = bool(found) and found[0][0] == cursor
    return not is_there and cursor != BEGINNING and bool(_entries(max=f"({cursor}", count=1))


def _is_outage(error: Exception) -> bool:
    """Whether the error has nothing to do with what was written: later the same will be taken."""
    is_refusal = isinstance(error, DataError | IntegrityError)
    return isinstance(error, RedisError | OSError) or (isinstance(error, DatabaseError) and not is_refusal)


def _dead_letter(error: InvalidMessage, fields: Fields) -> None:
    """Keep an entry that could not be recorded, with the reason. Raises `redis.RedisError`."""
    metrics.DEAD_LETTERS.labels(error.code).inc()
    reason = str(error)[:500]
    logger.warning("dead letter", extra={"source": "presence", "reason": reason})
    raw = fields.get(b"transition", repr(dict(fields)).encode())
    sync_client().xadd(
        key("dead"),
        {"reason": reason, "source": "presence", "message": raw[:DEAD_LETTER_BYTES]},
        maxlen=DEAD_LETTERS,
    )


def _parse(fields: Fields) -> Transition:
    """An entry's transition, made to fit every database's columns. Raises `InvalidMessage`."""
    if (raw := fields.get(b"transition")) is None:
        raise InvalidMessage("invalid_transition", "the entry has no field 'transition'")
    transition = parse_transition(raw)
    try:
        return msgspec.structs.replace(
            transition,
            at=transition.at.astimezone(UTC),
            since=transition.since and transition.since.astimezone(UTC),
            name=_text(transition.name)[:NAME_LENGTH],
            reason=_text(transition.reason),
            groups=sorted(set(transition.groups)),
        )
    except OverflowError as error:
        raise InvalidMessage("invalid_transition", str(error)) from error


def _text(value: str) -> str:
    return value.replace("\0", "")  # PostgreSQL can't store it
