"""Writing rows in the transaction that is open, and sending them right after its commit.

>>> with transaction.atomic():
...     thread.messages.create(body="hi")
...     publish("thread:message", {"thread_id": 42, "message_id": 7, "body": "hi"})
"""

from __future__ import annotations

import logging
import os
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary, ref

from django.db import Error as DatabaseError
from django.db import connections, transaction
from redis.exceptions import RedisError

from realtime.conf import conf
from realtime.outbox import table
from realtime.outbox.sending import Sender, send
from realtime.outbox.table import Waiting
from realtime.protocol.bus_message import BusMessage, subjects
from realtime.redis.bounded import now
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds beyond `OUTBOX_WAIT` after which a row that its own process has not sent is due."""
MARGIN = 0.5
"""Seconds of these for deleting the row. Its own process has this lease on it, and needs no other one in time."""
PAUSE = 1.0
"""Seconds for which a process leaves everything to the relays after Redis did not answer it."""
ROUNDS = 3
"""How often the sender of a transaction looks for rows that waited for its own."""


def write(message: BusMessage, encoded: bytes, using: str | None) -> None:
    """Keep a message in the outbox, and send it after the commit; without a transaction, at once.

    With `set_autocommit(False)` Django calls nothing after a commit: a relay sends the message.

    Raises `django.db.Error` when the row cannot be written.
    """
    using = using or table.default_database()
    connection = connections[using]
    if _is_manual(connection):
        table.insert(using, encoded, order_keys(message), "", 0)
        table.notify(using)
        return
    pending = _pending_of(connection, using)
    pending.add(encoded, order_keys(message))
    if connection.in_atomic_block:
        transaction.on_commit(pending.send, using=using, robust=True)
    else:
        pending.send()


def order_keys(message: BusMessage) -> frozenset[str]:
    """What a message is sent in order for: its rooms, and the user, thread or token that it is about.

    A message that has none of these is kept in order with the others of its event.
    """
    rooms = {room for _, room in message.targets}
    return frozenset(rooms | subjects(message.payload)) or frozenset({message.event})


def _is_manual(connection: Any) -> bool:
    """Whether the program itself commits, and Django does not know when."""
    if connection.in_atomic_block:
        return not connection.commit_on_exit
    return not connection.get_autocommit()


# --- The rows of a transaction -----------------------------------------------------------------------


class Pending:
    """The rows of one transaction. Each row registers `send`, so that one is left if a savepoint is rolled back.

    The first call sends all of them. Ids of rows that were rolled back are found nowhere.
    """

    def __init__(self, using: str) -> None:
        self._using = using
        self._messages: dict[int, bytes] = {}
        self._claim = uuid4().hex
        self._leased_until = now() + conf().outbox_wait + GRACE - MARGIN
        self.is_sent = False

    def add(self, message: bytes, rooms: frozenset[str]) -> None:
        """Write a row."""
        due_in = conf().outbox_wait + GRACE
        number = table.insert(self._using, message, rooms, self._claim, due_in)
        self._messages[number] = message

    def send(self) -> None:
        """Send the rows within `OUTBOX_WAIT`, or leave them to a relay. It raises nothing that can be expected."""
        if self.is_sent:
            return
        self.is_sent = True
        try:
            deliver(Sender(self._using, self._claim, self._messages, self._leased_until))
        except DatabaseError as error:
            logger.warning("outbox: the database failed, left to a relay", extra={"error": spelled(error)})


_open: WeakKeyDictionary[Any, ref[Pending]] = WeakKeyDictionary()
"""The rows of each connection's transaction. Only the callbacks hold them: a rollback drops both."""


def _pending_of(connection: Any, using: str) -> Pending:
    found = _open[connection]() if connection.in_atomic_block and connection in _open else None
    if found is None or found.is_sent:
        found = Pending(using)
        _open[connection] = ref(found)
    return found


# --- Sending them ------------------------------------------------------------------------------------


class _Breaker:
    """Pauses the attempts of a process after one has failed: every request would wait, one after the other."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        return now() < self._until

    def trip(self) -> None:
        self._until = now() + PAUSE

    def reset(self) -> None:
        self._until = 0.0


breaker = _Breaker()
os.register_at_fork(after_in_child=breaker.reset)


def deliver(by: Sender) -> None:
    """Send the rows of a transaction, and those that waited for them. Raises `django.db.Error`."""
    own, until = by.messages.keys(), now() + conf().outbox_wait
    if breaker.is_open:
        table.release(by.using, own, by.claim)
        return
    try:
        unsent = own - _deliver(by, own, until)
        if unsent:  # a row before them is being sent, or a backlog
            table.release(by.using, unsent, by.claim)
            _deliver(
                by, unsent, until
            )  # in case it was sent in between, and its sender found them not released yet
    except RedisError as error:
        breaker.trip()
        logger.warning(
            "outbox: Redis did not take the messages, left to a relay", extra={"error": spelled(error)}
        )
        table.release(by.using, own, by.claim)


def _deliver(by: Sender, own: AbstractSet[int], until: float) -> set[int]:
    """Send these rows, then those that share a room with what was sent. Returns the ids of what was sent."""
    sent: set[int] = set()
    rooms: frozenset[str] = frozenset()
    for _ in range(ROUNDS):
        found = send(by, partial(_follows, own, rooms), until)
        if not found.ids:
            break
        sent |= found.ids
        rooms |= found.rooms
    return sent


def _follows(own: AbstractSet[int], rooms: frozenset[str], row: Waiting) -> bool:
    # What is not due belongs to a process that sends it itself, or makes it due when it finds another before it.
    return row.id in own or (row.is_due and not rooms.isdisjoint(row.rooms))
