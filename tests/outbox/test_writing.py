from __future__ import annotations

import logging
import threading
from unittest.mock import Mock

import pytest
from django.db import connection, transaction
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from realtime.outbox import writing
from realtime.outbox.models import OutboxMessage
from realtime.publisher import publish
from realtime.redis import appending
from tests.outbox.conftest import CLOSED, MESSAGE, numbers, relay, say, stream, waiting

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("realtime_redis")]


@pytest.fixture
def without_redis(settings):
    """Redis cannot be reached; `back()` ends that."""
    before = settings.REALTIME
    settings.REALTIME = {**before, "REDIS_URL": CLOSED}

    class Outage:
        def back(self) -> None:
            settings.REALTIME = before
            writing.breaker.reset()

    return Outage()


class TestTransaction:
    def test_message_is_a_row_until_the_commit_and_in_the_stream_after_it(self):
        with transaction.atomic():
            say(1)
            assert (waiting(), stream()) == (1, [])
        assert (waiting(), numbers()) == (0, [1])

    def test_all_messages_of_a_transaction_are_sent_together_in_order(self, monkeypatch):
        sent: list[int] = []

        def note(messages, until, direct):
            sent.append(len(messages))
            appending.append(messages, until)

        monkeypatch.setattr("realtime.outbox.sending.append", note)
        with transaction.atomic():
            for number in range(5):
                say(number)
        assert sent == [5]
        assert numbers() == [0, 1, 2, 3, 4]

    def test_after_the_commit_it_takes_three_statements_and_no_lock(self):
        with CaptureQueriesContext(connection) as captured, transaction.atomic():
            say(1)
        after = [query["sql"].split()[0] for query in captured][-4:]
        assert after == ["COMMIT", "SELECT", "DELETE", "SELECT"]

    def test_rollback_takes_them_back(self):
        def fail() -> None:
            with transaction.atomic():
                say(1)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        say(2)
        assert (waiting(), numbers()) == (0, [2])

    @pytest.mark.parametrize("lost", [{1}, {2}, {1, 2}, {3}, {2, 3}], ids=str)
    def test_rollback_of_a_savepoint_takes_back_its_own(self, lost: set[int]):
        with transaction.atomic():
            for number in (1, 2, 3):
                with transaction.atomic():
                    say(number)
                    transaction.set_rollback(number in lost)
        assert numbers() == [number for number in (1, 2, 3) if number not in lost]
        assert waiting() == 0

    def test_callback_that_publishes_again_is_sent_too(self):
        with transaction.atomic():
            say(1)
            transaction.on_commit(lambda: say(2))
            say(3)
        assert (waiting(), numbers()) == (0, [1, 3, 2])

    def test_message_outside_a_transaction_is_sent_at_once(self):
        say(1)
        assert (waiting(), numbers()) == (0, [1])

    def test_manual_transaction_management_leaves_it_to_a_relay(self):
        transaction.set_autocommit(False)
        try:
            say(1)
            transaction.rollback()
            say(2)
            with transaction.atomic():
                say(3)
            transaction.commit()
        finally:
            transaction.set_autocommit(True)
        assert numbers() == []
        assert relay() == 2
        assert (waiting(), numbers()) == (0, [2, 3])

    @pytest.mark.parametrize(
        ("event", "data", "options", "rooms"),
        [
            ("thread:message", MESSAGE, {}, {"thread:42"}),
            (
                "thread:message",
                MESSAGE,
                {"rooms": ["user:7", "thread:1"]},
                {"user:7", "thread:1", "thread:42"},
            ),
            ("chat:accepted", {"thread_id": 1, "attendant_id": 2, "user_id": 3}, {}, {"thread:1", "user:3"}),
            ("queue:new", {"item_id": 1}, {}, {"presence:attendants"}),
            ("user:disconnect", {"user_id": 7, "namespace": "hub"}, {}, {"user:7"}),
            ("thread:grant", {"thread_id": 1, "user_id": 7}, {}, {"thread:1", "user:7"}),
            ("token:revoke", {"jti": "a", "exp": 4102444800}, {}, {"token:a"}),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_message_is_kept_in_order_for_its_rooms_and_subjects(
        self, event, data, options, rooms, without_redis
    ):
        publish(event, data, **options)
        [row] = OutboxMessage.objects.all()
        assert set(row.rooms.split("\n")) == rooms
        assert row.event == event


class TestInATestCase(TestCase):
    def test_captured_callbacks_send(self):
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            say(1)
            say(2)
            assert stream() == []
        assert len(callbacks) == 2
        assert (waiting(), numbers()) == (0, [1, 2])

    def test_second_capture_sends_its_own(self):
        for number in (1, 2):
            with self.captureOnCommitCallbacks(execute=True):
                say(number)
        assert numbers() == [1, 2]


class TestRedisIsAway:
    def test_request_does_not_fail_and_other_callbacks_run(self, without_redis, caplog):
        called: list[int] = []
        with transaction.atomic():
            say(1)
            transaction.on_commit(lambda: called.append(1))
        assert (called, waiting()) == ([1], 1)
        assert "outbox: Redis did not take the messages, left to a relay" in caplog.messages

    def test_later_message_of_its_room_waits_for_it_and_that_of_another_room_does_not(self, without_redis):
        say(1)
        without_redis.back()
        say(2)
        say(3, thread=43)
        assert numbers() == [3]
        assert relay() == 2
        assert numbers() == [3, 1, 2]

    def test_attempts_pause_after_one_has_failed(self, without_redis, monkeypatch):
        attempts: list[int] = []

        def note(messages, until, direct):
            attempts.append(1)
            appending.append(messages, until)

        monkeypatch.setattr("realtime.outbox.sending.append", note)
        for number in range(5):
            say(number)
        assert len(attempts) == 1
        without_redis.back()
        assert relay() == 5
        assert numbers() == [0, 1, 2, 3, 4]

    def test_failed_database_is_logged_and_raises_nothing(self, monkeypatch, caplog):
        from django.db import OperationalError

        monkeypatch.setattr("realtime.outbox.table.oldest", Mock(side_effect=OperationalError("gone")))
        with caplog.at_level(logging.WARNING):
            say(1)
        monkeypatch.undo()
        assert "outbox: the database failed, left to a relay" in caplog.messages
        assert waiting() == 1


def test_row_whose_process_died_becomes_due_by_itself(monkeypatch):
    monkeypatch.setattr(writing, "GRACE", 0.2)
    monkeypatch.setattr(writing.Pending, "send", lambda self: None)
    say(1)
    assert relay() == 0
    threading.Event().wait(1.0)
    assert relay() == 1


def test_messages_of_a_busy_room_are_sent_in_the_order_of_their_commits():
    """Each thread commits while it holds a lock: so the commits have an order."""
    order: list[int] = []
    lock = threading.Lock()

    def work(first: int) -> None:
        for number in range(first, first + 10):
            with lock:
                with transaction.atomic():
                    say(number)
                    callbacks = connection.run_on_commit
                    connection.run_on_commit = []
                order.append(number)
            for _, send_it, _ in callbacks:
                send_it()
        connection.close()

    running = [threading.Thread(target=work, args=[100 * index]) for index in range(8)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    while waiting():
        relay()
    assert numbers() == order
