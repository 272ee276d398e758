"""The publisher: how a backbone written in Django publishes events, and asks which users are online.

>>> from realtime.publisher import publish
>>> publish("thread:message", {"thread_id": 42, "message_id": 7, "body": "hi"})
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, ParamSpec, Protocol, TypeVar
from uuid import uuid4

from asgiref.sync import sync_to_async
from django.apps import apps
from django.db import transaction
from django.utils.asyncio import async_unsafe
from redis.exceptions import RedisError

from presence import store
from presence.namespaces import OLDEST, require_presence
from realtime.conf import conf
from realtime.layers.direct import direct
from realtime.protocol import bus_message, values
from realtime.protocol.bus_message import BusMessage, InvalidMessage
from realtime.protocol.ids import composed
from realtime.redis.appending import append
from realtime.redis.bounded import call, now
from realtime.redis.client import location
from realtime.telemetry import tracing
from realtime.telemetry.logs import spelled

__all__ = ["InvalidMessage", "aonline", "apublish", "online", "publish"]

logger = logging.getLogger(__name__)
OUTBOX = "realtime_outbox"
"""The label of the app that keeps messages in the database until Redis has them."""


P = ParamSpec("P")
T = TypeVar("T")
_asked_at: ContextVar[float | None] = ContextVar("asked_at", default=None)
"""When asynchronous code made the call that runs now, by `realtime.redis.bounded.now`."""
_failed_at = 0.0
"""When Redis failed a call of this process last."""


def _asynchronous(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    in_thread = sync_to_async(function)

    @wraps(function)
    async def asynchronous(*args: P.args, **kwargs: P.kwargs) -> T:
        token = _asked_at.set(now())
        try:
            return await in_thread(*args, **kwargs)
        finally:
            _asked_at.reset(token)

    return asynchronous


@contextlib.contextmanager
def _waiting() -> Iterator[float]:
    """Yields the time at which the wait for Redis ends.

    Asynchronous calls run one after the other. One for whose turn another one waited in vain has waited for Redis, too.
    """
    global _failed_at
    asked_at, begun = _asked_at.get(), now()
    if asked_at is not None and asked_at < _failed_at:
        begun = asked_at
    try:
        yield begun + conf().publish_timeout
    except RedisError:
        _failed_at = now()
        raise


@async_unsafe("publish() waits for Redis, which would hold up the event loop: use `await apublish(…)`.")
def publish(
    event: str,
    data: Mapping[str, Any],
    *,
    rooms: Iterable[str] | None = None,
    namespaces: Iterable[str] | None = None,
    id: str | int | None = None,
    exclude: str | None = None,
    using: str | None = None,
    robust: bool = False,
) -> None:
    """Publish an event durably: once this returns, it reaches its rooms, even if every bridge is down now.

    Inside a database transaction it waits for the commit, and a rollback takes it back. With the app `realtime.outbox`
    it is written in that transaction, and neither a Redis that is down nor the end of this process loses it.

    >>> publish("thread:message", {"thread_id": 42, "message_id": 7}, id="message-7")
    >>> publish("chat:ended", {"thread_id": 42}, rooms=["user:9"])
    >>> publish("chat:ended", {"thread_id": 43}, using="default", robust=True)

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
        using: The alias of the database whose transaction it belongs to; by default the default one, and with the
            outbox the one that the routers choose for its table.
        robust: Log it when Redis cannot store the message, instead of raising: nothing else fails because of it, and
            other `on_commit` callbacks run. With the outbox this is always so, and the message is sent later.

    Raises:
        InvalidMessage: At once, when the event is unknown, a required field is missing, a value is not valid, or JSON
            has no form for it. The text says where: `data.items[2].owner`.
        ImproperlyConfigured: At once, when a setting such as REDIS_URL cannot be used.
        redis.RedisError: When Redis has not confirmed it within `PUBLISH_TIMEOUT` (inside a transaction: after the
            commit). Never with the outbox.
        django.db.Error: With the outbox, when the message cannot be written into the database.
        SynchronousOnlyOperation: When called in the thread of a running event loop: `apublish` is for that.
    """
    tracing.start()
    with tracing.publish(event) as traceparent:
        message = {
            "event": event,
            "data": data,
            # Never without: a write that is repeated because its answer got lost stays one message.
            "id": uuid4().hex if id is None else id,
            "rooms": _listed(rooms),
            "namespaces": _listed(namespaces),
            "except": exclude,
            "traceparent": traceparent,
        }
        encoded, parsed = _encode(
            event, {name: value for name, value in message.items() if value is not None}
        )
        if OUTBOX in apps.app_configs:
            from realtime.outbox import table, writing  # noqa: PLC0415  (it has a table)

            using = using or table.default_database()
        if not _receivers:
            location()  # before the transaction is committed: after it, nothing could be taken back
        if _receivers:
            _after_commit(partial(_receivers[-1].append, encoded), using)
        elif OUTBOX in apps.app_configs:
            writing.write(parsed, encoded, using)
        else:
            _after_commit(partial(_append, event, encoded, robust=robust), using)


apublish = _asynchronous(publish)
apublish.__doc__ = """`publish` for asynchronous code: the same arguments, conversions and exceptions.

It runs in the thread of synchronous code, so it takes part in a transaction that was opened there.

>>> await apublish("chat:ended", {"thread_id": 42})
"""


@async_unsafe("online() waits for Redis, which would hold up the event loop: use `await aonline(…)`.")
def online(group: str, *, namespace: str = OLDEST) -> list[str]:
    """The ids of the users of a presence group who are online now, in no particular order.

    A user who is away, or who lost the last connection and is still in the grace period while away, is not among them.

    >>> online("sales")
    ['7']

    Args:
        group: The name of the presence group, as in the claim `groups`.
        namespace: The namespace of the users, one with presence; by default the oldest.

    Raises:
        TypeError: When the group is no text, but for example Django's group of that name.
        ValueError: When the namespace has no presence.
        redis.RedisError: When Redis has not answered within `PUBLISH_TIMEOUT`.
        SynchronousOnlyOperation: When called in the thread of a running event loop: `aonline` is for that.
    """
    if not isinstance(
        group, str | int
    ):  # a whole number is the id of a thread, whose customers are asked for
        raise TypeError(f"group: expected the name of a presence group, got {type(group).__name__}")
    require_presence(namespace)
    name = composed(str(group))
    if _receivers:
        return _receivers[-1].online(namespace, name)
    with _waiting() as until:
        members = call(lambda: store.snapshot_sync(namespace, name), until)
    return [member["user_id"] for member in members if member["status"] == "online"]


aonline = _asynchronous(online)
aonline.__doc__ = """`online` for asynchronous code: the same argument and exception.

>>> await aonline("sales")
['7']
"""


def _encode(event: str, message: Mapping[str, Any]) -> tuple[bytes, BusMessage]:
    try:
        encoded = values.encode(message)
    except values.NotJSON as error:
        raise InvalidMessage("invalid_message", f"{event}: {error}") from error
    return encoded, bus_message.parse(encoded)


def _listed(names: Iterable[str] | None) -> Any:
    """What is sent for several names. One name alone stays what it is, and is refused, instead of its characters."""
    return names if names is None or isinstance(names, str) else list(names)


def _after_commit(action: Callable[[], None], using: str | None) -> None:
    if transaction.get_connection(using).in_atomic_block:
        transaction.on_commit(action, using=using)
    else:
        action()  # on_commit() would open a database connection for nothing


def _append(event: str, message: bytes, *, robust: bool) -> None:
    try:
        with _waiting() as until:
            append([message], until, direct([message]))
    except RedisError as error:
        if not robust:
            raise
        logger.error("not published", extra={"event": event, "error": spelled(error)})


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
