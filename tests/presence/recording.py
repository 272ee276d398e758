"""What a recorder reads from the stream, and what it has written."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connections

from presence import store
from presence.models import PresenceRecord, PresenceTransition
from presence.recorder.recorder import Recorder
from realtime.redis.client import sync_client

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def entry(user_id: str = "7", old: str = "offline", new: str = "online", **more: Any) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "namespace": "hub",
        "from": old,
        "to": new,
        "reason": "connect",
        "at": at(0),
        "name": "Ana",
        "groups": ["attendants"],
        **more,
    }


def append(*arguments: Any, **more: Any) -> str:
    return append_raw(json.dumps(entry(*arguments, **more)))


def append_raw(value: str | bytes, field: str = "transition", entry_id: str = "*") -> str:
    added: Any = sync_client().xadd(store.stream(), {field: value}, id=entry_id)
    return str(added.decode())


def record(user_id: str = "7") -> PresenceRecord:
    return PresenceRecord.objects.get(user_id=user_id)


def groups_of(row: PresenceRecord | PresenceTransition) -> set[str]:
    return {group.name for group in row.groups.all()}


class Enough(BaseException):
    """Ends a recorder that would run for ever."""


def run(monkeypatch: pytest.MonkeyPatch, *happenings: Exception | None) -> tuple[int, list[bool]]:
    """Run a recorder: each of its steps fails or, with None, is taken, and then it is enough.

    Returns how often it said that it is ready, and for each step that was taken whether it waited for news.
    """
    step, left, waited, ready = Recorder.step, [*happenings, Enough()], [], []

    def next_step(self: Recorder, *, wait: bool = False) -> bool:
        if error := left.pop(0):
            raise error
        waited.append(wait)
        return step(self, wait=wait)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "step", next_step)
        patch.setattr(connections, "close_all", lambda: None)  # the test's transaction lives there
        with pytest.raises(Enough):
            Recorder().run(lambda: ready.append(True))
    return len(ready), waited


class Clock:
    """`time` for the recorder: it stands until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
