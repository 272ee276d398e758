"""The door for backbones written in Django: publish an event, ask who is available.

from realtime.publisher import publish
publish("thread:message", {"thread_id": 42, "message_id": 7, "body": "hi"})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from asgiref.sync import sync_to_async
from django.db import transaction

from presence import store
from presence.namespaces import OLDEST
from realtime.protocol import bus_message as bus
from realtime.protocol import values
from realtime.protocol.bus_message import InvalidMessage
from realtime.protocol.ids import composed
from realtime.redis.client import key, sync_client
from realtime.telemetry import tracing

__all__ = ["InvalidMessage", "aonline", "apublish", "online", "publish"]


def publish(
    event: str,
    data: Mapping[str, Any],
    *,
    rooms: Iterable[str] | None = None,
    namespaces: Iterable[str] | None = None,
    id: str | int | None = None,
    exclude: str | None = None,
) -> None:
    """Publish an event durably: once this returns it reaches its rooms, even if every bridge is down now.

    Inside a database transaction (of the default connection) it waits for the commit, and a rollback takes it
    back. `rooms` replaces the event's routing, `namespaces` narrows its audience, `exclude` is a connection id
    that is left out, and `id` (1–128 characters, or a whole number) makes repeating the call harmless for ten minutes.

    Values are converted as `realtime.protocol.values.plain` does it: template strings, lazy strings, dates, UUIDs,
    decimals, enums, sets, structs and dataclasses are; model instances, QuerySets, generators, bytes, NaN are not.

    Raises `InvalidMessage` at once when the event is unknown, a required field is missing, a value does not fit, or
    JSON has no form for it (the text says where: `data.items[2].owner`); `redis.RedisError` when it cannot be stored
    (inside a transaction: after the commit).
    """
    tracing.start()
    with tracing.publish(event) as trace:
        message = _encode(
            event, data, rooms=rooms, namespaces=namespaces, id=id, exclude=exclude, traceparent=trace
        )
        if transaction.get_connection().in_atomic_block:
            transaction.on_commit(lambda: _append(message))
        else:
            _append(message)  # on_commit() would open a database connection for nothing


apublish = sync_to_async(publish)
"""`publish` for asynchronous code."""


def online(group: str, *, namespace: str = OLDEST) -> list[str]:
    """The ids of the users of a presence group who are online now (not away). Raises `redis.RedisError`."""
    members = store.snapshot_sync(namespace, composed(group))
    return [member["user_id"] for member in members if member["status"] == "online"]


aonline = sync_to_async(online)
"""`online` for asynchronous code."""


def _encode(
    event: str,
    data: Mapping[str, Any],
    *,
    rooms: Iterable[str] | None,
    namespaces: Iterable[str] | None,
    id: str | int | None,
    exclude: str | None,
    traceparent: str | None = None,
) -> bytes:
    message: dict[str, Any] = {
        "event": event,
        "data": data,
        # Of its own even where none is given: a write that is retried because its answer got lost stays one.
        "id": uuid4().hex if id is None else id,
    }
    if rooms is not None:
        message["rooms"] = list(rooms)
    if namespaces is not None:
        message["namespaces"] = list(namespaces)
    if exclude is not None:
        message["except"] = exclude
    if traceparent is not None:
        message["traceparent"] = traceparent
    try:
        encoded = values.encode(message)
    except values.NotJSON as error:
        raise InvalidMessage("invalid_message", f"{event}: {error}") from error
    bus.parse(encoded)
    return encoded


def _append(message: bytes) -> None:
    sync_client().xadd(key("stream"), {"message": message})
