"""The publisher: how a backbone written in Django publishes events, and asks which users are online.

>>> from realtime.publisher import publish
>>> publish("thread:message", {"thread_id": 42, "message_id": 7, "body": "hi"})
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

from asgiref.sync import sync_to_async
from django.db import transaction

from presence import store
from presence.namespaces import OLDEST
from realtime.protocol import bus_message, values
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
    """Publish an event durably: once this returns, it reaches its rooms, even if every bridge is down now.

    Inside a database transaction (of the default connection) it waits for the commit, and a rollback takes it back.

    >>> publish("thread:message", {"thread_id": 42, "message_id": 7}, id="message-7")
    >>> publish("chat:ended", {"thread_id": 42}, rooms=["user:9"])

    Args:
        event: Its name in the catalogue.
        data: Its data. Values are converted by `realtime.protocol.values.plain`: template strings, lazy strings, dates,
            UUIDs, decimals, enums, sets, structs and dataclasses are; model instances, QuerySets, generators, bytes and
            NaN are refused.
        rooms: The rooms that it goes to, instead of the event's own; at most 1,000, each namespace's counted.
        namespaces: Narrows the event's audience to some of its namespaces.
        id: 1 to 128 characters, or a whole number. A message with an id that was published in the ten minutes before is
            not delivered again, so the call may be repeated.
        exclude: The `connection_id` of a connection that does not get the event.

    Raises:
        InvalidMessage: At once, when the event is unknown, a required field is missing, a value is not valid, or JSON
            has no form for it. The text says where: `data.items[2].owner`.
        redis.RedisError: When Redis cannot store it (inside a transaction: after the commit).
    """
    tracing.start()
    with tracing.publish(event) as traceparent:
        message = {
            "event": event,
            "data": data,
            # Never without: a write that is repeated because its answer got lost stays one message.
            "id": uuid4().hex if id is None else id,
            "rooms": None if rooms is None else list(rooms),
            "namespaces": None if namespaces is None else list(namespaces),
            "except": exclude,
            "traceparent": traceparent,
        }
        encoded = _encode(event, {name: value for name, value in message.items() if value is not None})
        append = partial(_receivers[-1].append if _receivers else _append, encoded)
        if transaction.get_connection().in_atomic_block:
            transaction.on_commit(append)
        else:
            append()  # on_commit() would open a database connection for nothing


apublish = sync_to_async(publish)
apublish.__doc__ = """`publish` for asynchronous code: the same arguments, conversions and exceptions.

It runs in the thread of synchronous code, so it takes part in a transaction that was opened there.

>>> await apublish("chat:ended", {"thread_id": 42})
"""


def online(group: str, *, namespace: str = OLDEST) -> list[str]:
    """The ids of the users of a presence group who are online now, in no particular order.

    A user who is away, or who lost the last connection and is still in the grace period while away, is not among them.

    >>> online("sales")
    ['7']

    Args:
        group: The name of the presence group, as in the claim `groups`.
        namespace: The namespace of the users, one with presence; by default the oldest.

    Raises:
        redis.RedisError: When Redis does not answer.
    """
    if _receivers:
        return _receivers[-1].online(namespace, composed(group))
    return [
        member["user_id"]
        for member in store.snapshot_sync(namespace, composed(group))
        if member["status"] == "online"
    ]


aonline = sync_to_async(online)
aonline.__doc__ = """`online` for asynchronous code: the same argument and exception.

>>> await aonline("sales")
['7']
"""


def _encode(event: str, message: Mapping[str, Any]) -> bytes:
    try:
        encoded = values.encode(message)
    except values.NotJSON as error:
        raise InvalidMessage("invalid_message", f"{event}: {error}") from error
    bus_message.parse(encoded)
    return encoded


def _append(message: bytes) -> None:
    sync_client().xadd(key("stream"), {"message": message})


# --- Tests -----------------------------------------------------------------------------------------------


class Receiver(Protocol):
    """What stands in for Redis in a test: `realtime.testing.fake_publisher`."""

    def append(self, message: bytes) -> None:
        """Take a valid message, as JSON; in a transaction after its commit."""

    def online(self, namespace: str, group: str) -> list[str]:
        """The ids of the users of a group who are online."""


_receivers: list[Receiver] = []


@contextlib.contextmanager
def received_by(receiver: Receiver) -> Iterator[None]:
    """While the block runs, `receiver` takes in place of Redis what any thread of this process publishes.

    A message belongs to the receiver that was there when it was published, also if its commit comes after the block.
    """
    _receivers.append(receiver)
    try:
        yield
    finally:
        _receivers.remove(receiver)
