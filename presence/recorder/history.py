"""The rows of presence in the database: a record for each user, and the history of their changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any

from django.db import connections, router, transaction

from presence.events import Transition
from presence.models import PresenceGroup, PresenceRecord, PresenceTransition

PRUNE_BATCH = 500
"""Transitions that are deleted in one transaction."""
User = tuple[str, str]
"""Namespace and user id."""


def database() -> str:
    """The alias of the database that routers choose for these tables. It is read, too: a replica may be behind."""
    return router.db_for_write(PresenceRecord)


def write(transitions: Mapping[str, Transition]) -> None:
    """Write transitions by entry id: history first, which needs the records as they were. Raises `django.db.Error`."""
    known = PresenceTransition.objects.using(database()).filter(entry_id__in=list(transitions))
    written = set(known.values_list("entry_id", flat=True))
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
    found = PresenceRecord.objects.using(database()).filter(user_id__in=user_ids)
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
    """How long the status that ended had lasted; None if its beginning was not recorded."""
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


def prune(before: datetime) -> int:
    """Delete at most `PRUNE_BATCH` of the oldest transitions before that moment, and return their number.

    On PostgreSQL two recorders that prune at once skip each other's rows; on SQLite one waits for the other.
    """
    old = PresenceTransition.objects.filter(at__lt=before).order_by("at", "id")
    with transaction.atomic(using=database()) if _has_row_locks() else nullcontext():
        ids = list(old.select_for_update(skip_locked=True).values_list("pk", flat=True)[:PRUNE_BATCH])
        _, deleted = PresenceTransition.objects.filter(pk__in=ids).delete()
    return deleted.get(PresenceTransition._meta.label, 0)


def _has_row_locks() -> bool:
    """Whether rows have locks. If not (SQLite), a transaction that reads first may fail instead of waiting."""
    features: Any = connections[database()].features
    return bool(features.has_select_for_update_skip_locked)
