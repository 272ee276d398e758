from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from realtime.outbox import writing
from realtime.outbox.models import OutboxMessage
from realtime.outbox.sending import send, sender
from realtime.publisher import publish
from realtime.redis.bounded import now
from realtime.redis.client import key, sync_client

MESSAGE = {"thread_id": 42, "message_id": 7}
CLOSED = "redis://127.0.0.1:1/0"
"""Nothing listens there."""


@pytest.fixture(autouse=True)
def closed_breaker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A failure pauses the attempts of its own test, however slow the machine is, and of no other."""
    monkeypatch.setattr(writing, "PAUSE", 3600.0)
    writing.breaker.reset()
    yield
    writing.breaker.reset()


def say(number: int, thread: int = 42, **options: Any) -> None:
    publish("thread:message", {"thread_id": thread, "message_id": number}, **options)


def leave(number: int, thread: int = 42, **options: Any) -> None:
    """Leave a message to a relay."""
    writing.breaker.trip()
    say(number, thread, **options)


def take_first() -> None:
    """Another sender takes the oldest row, and hangs."""
    first = OutboxMessage.objects.earliest("pk")
    OutboxMessage.objects.filter(pk=first.pk).update(claim="another", due_at=Now() + timedelta(seconds=9))


def relay(pages: int = 1) -> int:
    """What one step of a relay sends."""
    return len(send(sender("default"), lambda row: row.is_due, now() + 5, pages=pages).ids)


def stream() -> list[dict[str, Any]]:
    """The messages in the stream, in its order."""
    return [json.loads(fields[b"message"]) for _, fields in sync_client().xrange(key("stream"))]


def numbers() -> list[Any]:
    """The `message_id` of each message in the stream."""
    return [message["data"]["message_id"] for message in stream()]


def waiting(using: str = "default") -> int:
    """The rows of the outbox."""
    return OutboxMessage.objects.using(using).count()
