"""What the tests of the admin share."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from presence.models import PresenceRecord, PresenceTransition

PEOPLE = "admin:presence_availability_changelist"
PERSON = "admin:presence_availability_person"
CSV = "admin:presence_availability_csv"

Changes = list[tuple[datetime, str]]


def at(text: str, zone: Any = UTC) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


def attend(user_id: str, changes: Changes, name: str = "", namespace: str = "hub") -> None:
    """Record these changes as the recorder does."""
    PresenceRecord.objects.create(
        namespace=namespace,
        user_id=user_id,
        name=name or user_id,
        status=changes[-1][1] if changes else "offline",
        since=changes[-1][0] if changes else at("2026-01-01"),
        updated=at("2026-01-01"),
    )
    PresenceTransition.objects.bulk_create(transitions(user_id, changes, namespace))


def transitions(user_id: str, changes: Changes, namespace: str = "hub") -> Iterator[PresenceTransition]:
    before = "offline"
    for number, (moment, status) in enumerate(changes):
        yield PresenceTransition(
            entry_id=f"{namespace}{user_id}{number}",
            namespace=namespace,
            user_id=user_id,
            name=user_id,
            from_status=before,
            to_status=status,
            reason="connect",
            at=moment,
        )
        before = status
