"""From the stream of transitions into the database.

Rows and cursor are one transaction, so a recorder may be killed at any moment. Any number may run at once: who
moves the cursor writes the rows, the others find it moved and read on from there.
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
from presence.models import (
    NAME_LENGTH,
    PresenceGroup,
    PresenceRecord,
    PresenceTransition,
    Status,
    StreamCursor,
)
from presence.namespaces import OLDEST as HUB
from realtime.bridge.dead_letters import DEAD_LETTER_BYTES, DEAD_LETTERS
from realtime.conf import conf
from realtime.protocol.bus_message import InvalidMessage
from realtime.redis.client import key, sync_client
from realtime.tasks.supervision import report
from realtime.telemetry import metrics
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

BATCH = 500
"""Entries a transaction."""
BEGINNING = "0-0"
PRUNE_SECONDS = 60.0

Fields = Mapping[bytes, bytes]
Entry = tuple[str, Fields]


class Recorder:
    """Records transitions, forgets old ones, and has those taken offline whom Redis lost, until interrupted."""

    def __init__(self) -> None:
        self._resumed = False
        self._look_at = 0.0
        self._prune_at = 0.0
        self._unknown: dict[str, float] = {}

    def run(self, ready: Callable[[], None]) -> NoReturn:
        """Call `ready` once everything that was waiting is recorded, and go on for ever.

        An outage of Redis or of the database is logged and waited for.
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
        """Record what is new, look for ghosts and forget when it is time; with `wait`, give news a moment to come.

        Returns whether it has caught up. Raises `redis.RedisError` or `django.db.Error`: then nothing was
        recorded, and it can be called again.
        """
        if not self._resumed:
            self._resume()
        cursor = self._cursor()
        entries = self._read(cursor, wait)
        if entries:
            self._record_or_skip(cursor, entries)
        if len(entries) == BATCH:
            return False
        self._look()
        self._prune()
        return True

    def _recover(self, error: Exception, failures: int) -> None:
        """Start again soon, then later and later up to a second, never all at once."""
        logger.warning("cannot record, trying again", extra={"failures": failures, "error": spelled(error)})
        self._resumed = False
        # Nobody could register while Redis was away: what was unknown before says nothing.
        self._unknown.clear()
        connections.close_all()
        time.sleep(random.uniform(0.05, min(1.0, 0.1 * 2 ** min(failures, 4))))  # noqa: S311

    # --- The stream ------------------------------------------------------------------------------

    def _cursor(self) -> str:
        """The last entry that any recorder took."""
        return StreamCursor.objects.get_or_create(stream=store.stream())[0].entry_id

    def _read(self, cursor: str, wait: bool) -> list[Entry]:
        block = max(1, int(conf().batch_interval * 1000)) if wait else None  # 0 would be for ever
        answer: Any = sync_client().xread({store.stream(): cursor}, count=BATCH, block=block)
        return [(entry_id.decode(), fields) for _, entries in answer for entry_id, fields in entries]

    def _resume(self) -> None:
        """Begin again if the stream ends before the cursor: then no new entry would ever be seen.

        A replica that took over without the newest entries, or a Redis that came back empty on a machine whose
        clock is behind, hands out ids that are lower than the cursor. What is in the database already is not
        written twice.
        """
        cursor = self._cursor()
        last: Any = sync_client().xrevrange(store.stream(), count=1)
        if last and _position(last[0][0].decode()) < _position(cursor):
            logger.warning("the stream lost its end, reading it again", extra={"cursor": cursor})
            StreamCursor.objects.filter(stream=store.stream(), entry_id=cursor).update(entry_id=BEGINNING)
        self._resumed = True

    # --- The database ----------------------------------------------------------------------------

    def _record_or_skip(self, cursor: str, entries: Sequence[Entry]) -> None:
        """Record entries together, or one by one if the database refuses one of them: it must not hold up others."""
        try:
            self._record(cursor, entries)
        except Exception as error:
            if _is_outage(error):
                raise
            for entry in entries if len(entries) > 1 else ():
                self._record_or_skip(cursor, [entry])
                cursor = entry[0]
            if len(entries) == 1:
                self._skip(cursor, entries[0], error)

    def _skip(self, cursor: str, entry: Entry, error: Exception) -> None:
        report("recorder")
        with transaction.atomic():
            here = StreamCursor.objects.filter(stream=store.stream(), entry_id=cursor)
            if here.update(entry_id=entry[0]):
                self._bury(InvalidMessage("refused", spelled(error)), entry[1])

    def _record(self, cursor: str, entries: Sequence[Entry]) -> None:
        transitions: dict[str, Transition] = {}
        rejected: list[tuple[InvalidMessage, Fields]] = []
        for entry_id, fields in entries:
            try:
                transition = _parse(fields)
                if transition.namespace == HUB:  # when customers came and went is nobody's business later
                    transitions[entry_id] = transition
            except InvalidMessage as error:
                rejected.append((error, fields))
        with transaction.atomic():
            # Compare and set: an UPDATE locks the row on PostgreSQL and the file on SQLite. Whoever waited for
            # the lock finds another value, and leaves the entries to the one who was first.
            here = StreamCursor.objects.filter(stream=store.stream(), entry_id=cursor)
            if not here.update(entry_id=entries[-1][0]):
                return
            _write(transitions)
            # After everything that can fail here, before the cursor counts: kept at least once.
            for reason, fields in rejected:
                self._bury(reason, fields)
        logger.debug("recorded", extra={"transitions": len(transitions), "cursor": entries[-1][0]})

    def _bury(self, error: InvalidMessage, fields: Fields) -> None:
        """Keep what could not be recorded, with the reason. Raises `redis.RedisError`."""
        metrics.DEAD_LETTERS.labels(error.code).inc()
        reason = str(error)[:500]
        logger.warning("dead letter", extra={"source": "presence", "reason": reason})
        raw = fields.get(b"transition", repr(dict(fields)).encode())
        sync_client().xadd(
            key("dead"),
            {"reason": reason, "source": "presence", "message": raw[:DEAD_LETTER_BYTES]},
            maxlen=DEAD_LETTERS,
        )

    # --- Ghosts ----------------------------------------------------------------------------------

    def _look(self) -> None:
        """Compare the database with Redis, if it is time.

        A Redis that was wiped says nothing about those who never came back: they would stay online for ever.
        Whoever it does not know for longer than a dead process and the grace period could explain is announced
        offline there; the announcement comes back over the stream.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + conf().batch_interval
        present = PresenceRecord.objects.filter(namespace=HUB, status__in=(Status.ONLINE, Status.AWAY))
        user_ids = list(present.values_list("user_id", flat=True))
        statuses = store.statuses_sync(user_ids) if user_ids else {}
        self._unknown = {
            user_id: self._unknown.get(user_id, now)
            for user_id, status in statuses.items()
            if status == Status.OFFLINE
        }
        patience = conf().node_lease + conf().grace_period
        lost = [user_id for user_id, since in self._unknown.items() if now - since > patience]
        for start in range(0, len(lost), BATCH):
            ghosts = present.filter(user_id__in=lost[start : start + BATCH]).prefetch_related("groups")
            store.apply_sync([_forget(record) for record in ghosts])
            logger.warning("unknown to Redis, taken offline", extra={"users": len(ghosts)})
        for user_id in lost:
            del self._unknown[user_id]

    # --- Old history -----------------------------------------------------------------------------

    def _prune(self) -> None:
        """Forget what is older than `PRESENCE_RETENTION`, if it is time: a batch, and the next one in the next step.

        So a backlog of years is no long transaction, and holds up nothing that is to be recorded.
        """
        now, retention = time.monotonic(), conf().presence_retention
        if not retention or now < self._prune_at:
            return
        pruned = prune(timezone.now() - timedelta(seconds=retention))
        if pruned:
            logger.info("history pruned", extra={"transitions": pruned})
        if pruned < BATCH:
            self._prune_at = now + PRUNE_SECONDS


def prune(before: datetime) -> int:
    """Forget at most `BATCH` of the oldest transitions before that moment. Returns their number.

    On PostgreSQL two recorders that do it at once leave each other's rows alone; on SQLite one waits for the other.
    """
    with transaction.atomic():
        old = PresenceTransition.objects.filter(at__lt=before).order_by("at", "id")
        ids = list(old.select_for_update(skip_locked=True).values_list("pk", flat=True)[:BATCH])
        PresenceTransition.objects.filter(pk__in=ids).delete()
    return len(ids)


def _is_outage(error: Exception) -> bool:
    """Whether it has nothing to do with what was to be written: the same will be taken later."""
    is_refusal = isinstance(error, DataError | IntegrityError)
    return isinstance(error, RedisError | OSError) or (isinstance(error, DatabaseError) and not is_refusal)


def _forget(record: PresenceRecord) -> dict[str, Any]:
    return {
        "does": "forget",
        "user": record.user_id,
        "name": record.name,
        "groups": [group.name for group in record.groups.all()],
        "status": record.status,
    }


def _position(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


def _parse(fields: Fields) -> Transition:
    """An entry's transition, made fit for every database's columns. Raises `InvalidMessage`."""
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
    return value.replace("\0", "")  # PostgreSQL has no room for it


# --- What a batch changes ------------------------------------------------------------------------

User = tuple[str, str]


def _write(transitions: Mapping[str, Transition]) -> None:
    """Write a batch: the history first, because it needs the records as they were. Raises `django.db.Error`."""
    written = set(
        PresenceTransition.objects.filter(entry_id__in=list(transitions)).values_list("entry_id", flat=True)
    )
    records = _records({transition.user_id for transition in transitions.values()})
    groups: dict[User, list[str]] = {}
    history: list[PresenceTransition] = []
    for entry_id, transition in transitions.items():
        user = (transition.namespace, transition.user_id)
        record = records.setdefault(user, PresenceRecord(namespace=user[0], user_id=user[1]))
        if not transition.is_regrouping and entry_id not in written:
            history.append(_history(entry_id, record, transition))
        _follow(record, transition)
        groups[user] = [*transition.groups]
    _save_groups({name for transition in transitions.values() for name in transition.groups})
    _save_history(history, transitions)
    _save_records({user: records[user] for user in groups}, groups)


def _records(user_ids: set[str]) -> dict[User, PresenceRecord]:
    found = PresenceRecord.objects.filter(user_id__in=user_ids)
    return {(record.namespace, record.user_id): record for record in found}


def _history(entry_id: str, record: PresenceRecord, transition: Transition) -> PresenceTransition:
    return PresenceTransition(
        entry_id=entry_id,
        namespace=transition.namespace,
        user_id=transition.user_id,
        name=transition.name,
        from_status=transition.from_status,
        to_status=transition.to_status,
        reason=transition.reason,
        at=transition.at,
        duration=_duration(record, transition),
    )


def _duration(record: PresenceRecord, transition: Transition) -> timedelta | None:
    """How long the status that is left had lasted; unknown if it is not the one we saw begin."""
    if record.status != transition.from_status or record.since > transition.at:
        return None
    return transition.at - record.since


def _follow(record: PresenceRecord, transition: Transition) -> None:
    if not transition.is_regrouping:
        record.since = transition.at
    elif record.status != transition.to_status:
        record.since = transition.since or transition.at
    record.name = transition.name
    record.status = transition.to_status
    record.updated = transition.at


def _save_groups(names: set[str]) -> None:
    PresenceGroup.objects.bulk_create([PresenceGroup(name) for name in sorted(names)], ignore_conflicts=True)


def _save_history(history: Sequence[PresenceTransition], transitions: Mapping[str, Transition]) -> None:
    PresenceTransition.objects.bulk_create(history)
    through = PresenceTransition.groups.through
    through.objects.bulk_create(
        through(presencetransition_id=row.pk, presencegroup_id=name)
        for row in history
        for name in transitions[row.entry_id].groups
    )


def _save_records(records: Mapping[User, PresenceRecord], groups: Mapping[User, Sequence[str]]) -> None:
    new = [record for record in records.values() if record.pk is None]
    known = [record for record in records.values() if record.pk is not None]
    PresenceRecord.objects.bulk_create(new)
    PresenceRecord.objects.bulk_update(known, ["name", "status", "since", "updated"])
    through = PresenceRecord.groups.through
    through.objects.filter(presencerecord__in=known).delete()
    through.objects.bulk_create(
        through(presencerecord_id=record.pk, presencegroup_id=name)
        for user, record in records.items()
        for name in groups[user]
    )
