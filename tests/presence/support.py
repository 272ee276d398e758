"""What the tests of the admin share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from presence.models import PresenceRecord, PresenceTransition
from realtime.redis.client import key, sync_client
from realtime.survey import load, results
from realtime.survey.ask import Answered, Asked
from realtime.survey.messages import (
    AboutConnection,
    AboutConnections,
    AboutInstances,
    AboutRooms,
    Detail,
    InRoom,
    Instance,
)
from tests.survey.test_messages import Connection, Principal

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


PUBLISHES = pytest.mark.django_db(transaction=True)
"""What is published is not held back for a commit."""

ONE = Instance("one", "pod-a", 11, "0.1.0", 1e9)
TWO = Instance("two", "pod-b", 22, "0.1.0", 1e9, is_draining=True)

CONNECTIONS = "admin:presence_live_changelist"
INSTANCES = "admin:presence_live_instances"
ROOMS = "admin:presence_live_rooms"
EVENT = "admin:presence_live_event"
LOG = "admin:presence_live_log"
DISCONNECT = ("admin:presence_live_disconnect", "hub", "7")
MOVE = ("admin:presence_live_move", "hub", "7", "thread:42")
DRAIN = ("admin:presence_live_drain", "one")


class System:
    """Processes with connections, which answer as real ones do."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[Instance, list[Connection]]] = {"one": (ONE, []), "two": (TWO, [])}
        self.silent: list[Instance] = []
        self.asked: list[Any] = []

    def hold(self, instance: str, *connections: Connection) -> None:
        self.held[instance][1].extend(connections)

    def ask(self, about: Any, kind: Any, instance: str = "") -> Asked[Any]:
        self.asked.append(about)
        answers = [
            Answered(who, asyncio.run(self._say(about, held)), 0.025)
            for id, (who, held) in self.held.items()
            if instance in {"", id}
        ]
        return Asked(answers, self.silent)

    async def _say(self, about: Any, held: list[Any]) -> Any:
        match about:
            case AboutConnections():
                return await results.page(about, held)
            case AboutRooms():
                return await results.rooms(about, held)
            case AboutInstances():
                return await load.load(held, cpu=0.25, stall=0.001)
            case AboutConnection():
                for each in held:
                    if each.connection_id == about.connection_id:
                        rooms = [InRoom(room, position, 2_500_001) for room, position in each.rooms.items()]
                        return Detail(results.row(each), ["sales"], 2e9, rooms)
                return Detail()


def person(number: int, name: str = "Ana", **rooms: int) -> Connection:
    rooms = {"user:7": 1, "thread:42": 2_500_001, **rooms}
    return Connection(f"c{number}", ("hub", "7"), Principal(name), 1e9 + number, rooms, 0)


LETTERS = "admin:presence_deadletter_changelist"
RESEND = "admin:presence_deadletter_resend"

VALID = b'{"event":"thread:message","data":{"thread_id":42,"message_id":"1","total":1.10}}'


def dead(message: bytes = VALID, reason: str = "unknown_event: 'x'", source: str = "stream") -> str:
    fields: Any = {"reason": reason, "source": source, "message": message}
    return sync_client().xadd(key("dead"), fields).decode()


def send(client: Client, *ids: str) -> Any:
    return client.post(reverse(RESEND), {"letter": [*ids], "confirmed": "yes"}, follow=True)
