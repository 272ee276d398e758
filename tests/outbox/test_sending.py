"""What must not hold up what: rows of other senders, rows that Redis refuses, clocks that are set."""

from __future__ import annotations

import json
import threading
from datetime import timedelta

import pytest
from django.db.models import F
from django.db.models.functions import Now
from redis.exceptions import ResponseError

from realtime.outbox import refused, sending, table
from realtime.outbox.models import OutboxMessage
from realtime.outbox.relay import Relay
from realtime.outbox.sending import PAGES, send, sender
from realtime.outbox.table import WINDOW
from realtime.redis import appending
from realtime.redis.bounded import now
from tests.outbox.conftest import leave, numbers, relay, take_first, waiting
from tests.servers import until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("realtime_redis")]


def copies(count: int, thread: int) -> None:
    leave(0, thread)
    row = OutboxMessage.objects.latest("pk")
    fields = {name: getattr(row, name) for name in ("message", "rooms", "created_at", "due_at")}
    OutboxMessage.objects.bulk_create((OutboxMessage(**fields) for _ in range(count)), batch_size=500)


def test_backlog_of_a_room_that_another_sender_holds_up_does_not_stop_other_rooms():
    copies(WINDOW + 500, thread=42)
    take_first()
    leave(7, thread=43)
    assert relay(PAGES) == 1
    assert numbers() == [7]


def test_row_behind_a_page_is_not_sent_before_an_older_one_of_its_rooms():
    copies(WINDOW + 500, thread=42)
    take_first()
    leave(7, rooms=["thread:42", "user:1"])
    leave(8, rooms=["user:1"])
    assert relay(PAGES) == 0
    assert numbers() == []


def test_rows_that_others_have_taken_in_between_are_passed_over(monkeypatch):
    """As with four relays at once: each looks, and the first to come has what the others have chosen."""
    monkeypatch.setattr(
        table, "has_skip_locked", lambda using: False
    )  # with locks, test_postgresql.py has it
    monkeypatch.setattr(sending, "BATCH_ROWS", 2)
    for number in range(5):
        leave(number, thread=number)
    lease = table.lease

    def late(using, ids, *rest):
        monkeypatch.setattr(table, "lease", lease)
        OutboxMessage.objects.filter(pk__in=ids).update(claim="another", due_at=Now() + timedelta(seconds=9))
        return lease(using, ids, *rest)

    monkeypatch.setattr(table, "lease", late)
    assert len(send(sender("default"), lambda row: row.is_due, now() + 5, 2).ids) == 2
    assert numbers() == [2, 3]


def test_row_that_was_dropped_after_it_was_claimed_is_passed_over(monkeypatch):
    leave(1)
    leave(2, thread=43)
    messages = table.messages

    def after_a_deletion(using, ids):
        OutboxMessage.objects.filter(pk=min(ids)).delete()
        return messages(using, ids)

    monkeypatch.setattr(table, "messages", after_a_deletion)
    relay()
    assert (numbers(), waiting()) == ([2], 0)


def test_clock_that_was_set_back_delays_nothing():
    """The database has moved to a host whose clock is an hour behind."""
    leave(1)
    OutboxMessage.objects.update(due_at=F("due_at") + timedelta(hours=1))
    assert relay() == 1
    assert numbers() == [1]


class TestRowThatRedisRefuses:
    @pytest.fixture
    def refusing(self, monkeypatch):
        """Redis refuses what contains message 13, until `refusing.clear()`."""
        bad = {13}

        def append(messages, until, direct):
            if bad & {json.loads(message)["data"]["message_id"] for message in messages}:
                raise ResponseError("too large")
            appending.append(messages, until)

        monkeypatch.setattr(sending, "append", append)
        monkeypatch.setattr(refused, "FIRST_PAUSE", 0.1)
        return bad

    @pytest.fixture
    def running(self):
        """A relay, in a thread."""
        stopping = threading.Event()
        thread = threading.Thread(target=Relay("default", stopping).run, args=[lambda: None])

        yield thread.start
        stopping.set()
        thread.join()

    def test_other_rooms_go_on_and_its_own_waits(self, refusing, running):
        leave(13)
        leave(14)
        for number in range(20):
            leave(number + 100, thread=43 + number % 3)
        running()
        until(lambda: waiting() == 2)
        assert sorted(numbers()) == list(range(100, 120))
        refusing.clear()
        until(lambda: not waiting())
        assert numbers()[-2:] == [13, 14]

    def test_operator_reads_which_row_it_is(self, refusing, running, caplog):
        leave(13)
        leave(1, thread=43)
        running()
        until(lambda: "outbox: Redis takes others, but not this message" in caplog.messages)
        assert numbers() == [1]
