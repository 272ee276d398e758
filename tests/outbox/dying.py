"""Backbones and relays that are killed at every point (`python -m tests.outbox.dying backbone|relay`).

For n = 1, 2, … a process that kills itself at the n-th step publishes two messages in a transaction, into a room of its
own, together with a row of the team's; then another process publishes a third one. A step is every call, and every
return, of a function that talks to the database or to Redis: nothing that is done between two of them outlives the
process. At the end relays send what is left. It prints, as JSON, which transactions were committed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import django

NAMES = frozenset({"execute", "commit", "_commit", "rollback", "send_packed_command", "read_response"})
"""Of the database and of Redis."""


def in_child(work: Callable[[], None]) -> bool:
    """Run it in a process of its own, which has no connection of ours; returns whether it lived to the end."""
    pid = os.fork()
    if not pid:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def die_at(step: int) -> None:
    """Kill this process at its n-th step from now on."""
    seen = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal seen
        code = frame.f_code
        if code.co_name in NAMES and event in {"call", "return"} and "/psycopg" not in code.co_filename:
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def connect() -> None:
    from django.db import connection

    connection.ensure_connection()


def say(room: int, number: int) -> None:
    from realtime.publisher import publish

    publish("thread:message", {"thread_id": room, "message_id": number})


def transaction_of(room: int) -> None:
    from django.contrib.auth.models import Group
    from django.db import transaction

    with transaction.atomic():
        Group.objects.create(name=str(room))
        say(room, 1)
        say(room, 2)


def relay_once() -> None:
    from realtime.outbox.sending import send, sender
    from realtime.redis.bounded import now

    while send(sender("default"), lambda row: row.is_due, now() + 5).ids:
        pass


def leave_to_relay(room: int) -> None:
    """Commit the messages as a process does that dies right then."""
    from realtime.outbox import writing

    writing.GRACE = -10.0
    writing.Pending.send = lambda self: None  # type: ignore[method-assign]
    transaction_of(room)


def backbone(step: int) -> bool:
    def work() -> None:
        connect()
        die_at(step)
        transaction_of(step)
        sys.setprofile(None)

    return in_child(work)


def relay(step: int) -> bool:
    def work() -> None:
        connect()
        die_at(step)
        relay_once()
        sys.setprofile(None)

    in_child(lambda: leave_to_relay(step))
    return in_child(work)


def rows() -> int:
    read, write = os.pipe()

    def work() -> None:
        from realtime.outbox.models import OutboxMessage

        os.write(write, str(OutboxMessage.objects.count()).encode())

    in_child(work)
    os.close(write)
    found = int(os.read(read, 20))
    os.close(read)
    return found


def committed() -> None:
    from django.contrib.auth.models import Group

    names = Group.objects.values_list("name", flat=True)
    sys.stdout.write(json.dumps(sorted(int(name) for name in names)))


def main() -> None:
    django.setup()
    from realtime.outbox import sending, writing  # (imported once, before the forks)
    from realtime.protocol.catalogue import catalogue

    catalogue()
    writing.GRACE, writing.MARGIN, sending.LEASE_MARGIN = 0.0, -1.0, 0.2
    kill = {"backbone": backbone, "relay": relay}[sys.argv[1]]
    step = 1
    while not kill(step):
        in_child(partial(say, step, 3))
        in_child(relay_once)
        if kill is relay:
            relay_all()  # so that the next step is no longer: the database may hold the locks of this one for a moment
        step += 1
    relay_all()
    committed()


def relay_all() -> None:
    while rows():
        time.sleep(0.05)
        in_child(relay_once)


if __name__ == "__main__":
    main()
