"""The fake publisher: what it records, what it says when an assertion fails, and what it leaves to production."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import unittest
from decimal import Decimal
from enum import Enum
from unittest.mock import ANY
from uuid import UUID

import pytest
from django.db import transaction
from django.test import TestCase as DjangoTestCase

from realtime.publisher import InvalidMessage, aonline, apublish, online, publish
from realtime.redis.client import key, sync_client
from realtime.testing import PublishedMixin, fake_publisher
from realtime.testing.comparing import is_equal
from realtime.testing.recorder import Published

MESSAGE = {"thread_id": 42, "message_id": 7}


@pytest.fixture
def published():
    with fake_publisher() as record:
        yield record


@pytest.fixture
def committing(django_capture_on_commit_callbacks):
    return lambda: django_capture_on_commit_callbacks(execute=True)


# --- What is recorded --------------------------------------------------------------------------------


def test_event_is_recorded_as_its_receivers_would_get_it(published: Published):
    publish("thread:message", {**MESSAGE, "body": "hi", "price": Decimal("1.10")}, id=5, exclude="c1")
    [event] = published
    assert event.event == "thread:message"
    assert event.data == {"thread_id": "42", "message_id": "7", "body": "hi", "price": "1.10"}
    assert (event.rooms, event.namespaces) == (("thread:42",), ("hub", "portal"))
    assert (event.id, event.exclude) == ("5", "c1")


def test_rooms_and_namespaces_are_those_of_the_message(published: Published):
    publish("thread:message", MESSAGE, rooms=["user:1", "user:2"], namespaces=["portal"])
    assert (published[0].rooms, published[0].namespaces) == (("user:1", "user:2"), ("portal",))


def test_control_event_is_recorded_and_goes_to_no_room(published: Published):
    publish("user:disconnect", {"user_id": 7, "namespace": "hub"})
    event = published.assertPublished("user:disconnect", user_id=7, rooms=[], namespaces=[])
    assert event.data["namespace"] == "hub"


def test_record_is_a_sequence_and_can_be_cleared(published: Published):
    for number in range(3):
        publish("queue:new", {"item_id": number})
    assert len(published) == 3
    assert [event.data["item_id"] for event in published] == ["0", "1", "2"]
    published.clear()
    published.assertNothingPublished()


def test_what_is_not_valid_is_refused_as_in_production(published: Published):
    with pytest.raises(InvalidMessage, match="unknown_event"):
        publish("thread:massage", MESSAGE)
    published.assertNothingPublished()


@pytest.mark.usefixtures("realtime_redis", "without_outbox")
def test_messages_are_sent_again_after_the_block_and_none_in_it():
    with fake_publisher() as record:
        publish("thread:message", MESSAGE)
    publish("thread:message", MESSAGE)
    assert sync_client().xlen(key("stream")) == 1
    assert len(record) == 1


async def test_asynchronous_code_and_other_threads_are_recorded(published: Published):
    await apublish("thread:message", MESSAGE)
    thread = threading.Thread(target=publish, args=("queue:updated", {}))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert [event.event for event in published] == ["thread:message", "queue:updated"]


def test_inner_block_has_a_record_of_its_own(published: Published):
    with fake_publisher() as inner:
        publish("queue:updated", {})
    publish("thread:message", MESSAGE)
    assert [event.event for event in inner] == ["queue:updated"]
    assert [event.event for event in published] == ["thread:message"]


async def test_answer_about_who_is_online_is_what_the_test_has_set(published: Published):
    assert await aonline("sales") == []
    published.set_online("sales", [7, "ana"])
    published.set_online("sales", [8], namespace="portal")
    assert await aonline("sales") == ["7", "ana"]
    assert await aonline("sales", namespace="portal") == ["8"]


# --- Transactions ------------------------------------------------------------------------------------


@pytest.mark.django_db
class TestInATransaction:
    def test_event_is_published_after_the_commit(self, published: Published, committing):
        with committing():
            publish("thread:message", MESSAGE)
            published.assertNothingPublished()
            assert [event.data["message_id"] for event in published.pending] == ["7"]
        published.assertPublished("thread:message", message_id=7)
        assert published.pending == []

    def test_without_a_commit_it_stays_pending_and_the_assertion_says_so(self, published: Published):
        publish("thread:message", MESSAGE)
        with pytest.raises(AssertionError) as caught:
            published.assertPublished("thread:message")
        assert "Published: nothing." in str(caught.value)
        assert "Waiting for a commit (1):" in str(caught.value)
        assert "captureOnCommitCallbacks(execute=True)" in str(caught.value)

    def test_rollback_takes_it_back(self, published: Published, committing):
        with committing():
            with transaction.atomic():
                publish("thread:message", MESSAGE)
                transaction.set_rollback(True)
            assert published.pending == []
        published.assertNothingPublished()

    def test_same_message_twice_is_pending_once_it_was_published_once(self, published: Published, committing):
        with committing():
            publish("thread:message", MESSAGE, id="m")
        publish("thread:message", MESSAGE, id="m")
        assert (len(published), len(published.pending)) == (1, 1)

    def test_commit_after_the_block_sends_nothing(self, realtime_redis: str, committing):
        with committing(), fake_publisher() as record:
            publish("thread:message", MESSAGE)
        assert len(record) == 1
        assert sync_client().xlen(key("stream")) == 0


# --- Assertions --------------------------------------------------------------------------------------


class Mood(Enum):
    GOOD = "good"


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (42, "42"),
        ("42", "42"),
        (UUID(int=1), str(UUID(int=1))),
        (Mood.GOOD, "good"),
        (dt.datetime(2026, 3, 1, tzinfo=dt.UTC), "2026-03-01T00:00:00Z"),
        ([1, 2], ["1", "2"]),
        ((1, 2), [1, 2]),
        ({"id": 1, "tags": ["a"]}, {"id": "1", "tags": ["a"]}),
        (ANY, True),
        ({"id": ANY}, {"id": [1]}),
        (1, 1.0),
        (None, None),
    ],
)
def test_values_are_equal_as_on_the_wire(expected, actual):
    assert is_equal(expected, actual)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ("42", 42),
        (True, 1),
        (1, True),
        (True, "True"),
        (42, "042"),
        ([1], [1, 2]),
        ({"a": 1}, {"a": 1, "b": 2}),
        (None, ""),
    ],
)
def test_values_that_differ_on_the_wire_are_not_equal(expected, actual):
    assert not is_equal(expected, actual)


def test_assertion_returns_the_first_event_that_matches(published: Published):
    for body in ("a", "b", "b"):
        publish("thread:message", {**MESSAGE, "body": body})
    assert published.assertPublished("thread:message", body="b") is published[1]
    published.assertPublished("thread:message", count=2, body="b")
    published.assertPublished("thread:message", data={"body": "a"}, missing=None)
    assert published.matching("thread:message", body="b", namespaces={"portal", "hub"}) == list(published)[1:]
    published.assertNotPublished("thread:message", body="c")
    published.assertNotPublished("thread:message", namespaces=["hub"])


def failure(call, *args, **kwargs) -> str:
    with pytest.raises(AssertionError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_failed_assertion_names_the_nearest_difference_and_lists_what_was_published(published: Published):
    publish("thread:message", {"thread_id": 42, "message_id": 7, "body": "hi"})
    publish("thread:message", {"thread_id": 43, "message_id": 8, "body": "ho"})
    publish("queue:updated", {})
    assert failure(published.assertPublished, "thread:message", thread_id=42, body="ho", message_id=7) == (
        "thread:message with thread_id=42, body='ho', message_id=7 was not published.\n"
        "The nearest thread:message: body is 'hi', expected 'ho'.\n"
        "Published (3):\n"
        '  1. thread:message {"thread_id": "42", "message_id": "7", "body": "hi"} to thread:42 in hub, portal\n'
        '  2. thread:message {"thread_id": "43", "message_id": "8", "body": "ho"} to thread:43 in hub, portal\n'
        "  3. queue:updated {} to presence:attendants in hub"
    )


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"rooms": ["thread:43"]}, "rooms are ['thread:42'], expected ['thread:43']"),
        ({"namespaces": ["hub"]}, "namespaces are ['hub', 'portal'], expected ['hub']"),
        ({"owner": 1}, "owner is missing, expected 1"),
        ({"body": None}, "body is 'hi', expected None"),
        ({"count": 2}, "thread:message was not published 2 times, but 1 times."),
    ],
)
def test_failed_assertion_says_what_differs(published: Published, wanted, said: str):
    publish("thread:message", {**MESSAGE, "body": "hi"})
    assert said in failure(published.assertPublished, "thread:message", **wanted)


def test_other_assertions_list_what_was_published(published: Published):
    publish("thread:message", {**MESSAGE, "body": "x" * 5000})
    nothing = failure(published.assertNothingPublished)
    assert '1. thread:message {"thread_id": "42"' in nothing
    other = failure(published.assertNotPublished, "thread:message", thread_id=42)
    assert other.startswith("thread:message with thread_id=42 was published:\n  thread:message {")
    assert max(len(nothing), len(other)) < 500


def test_long_list_is_cut(published: Published):
    for _ in range(25):
        publish("queue:updated", {})
    assert "… and 5 more" in failure(published.assertNothingPublished)


@pytest.mark.parametrize("event", ["thread:mesage", "join:thread"])
def test_event_that_cannot_be_published_is_a_mistake_of_the_test(published: Published, event: str):
    for check in (published.assertPublished, published.assertNotPublished, published.matching):
        with pytest.raises(ValueError, match=f"'{event}' is not an event that can be published"):
            check(event)
    with pytest.raises(ValueError, match="did you mean 'thread:message'"):
        published.assertNotPublished("thread:mesage")


def test_no_event_at_all_is_another_assertion(published: Published):
    with pytest.raises(ValueError, match="use assertNotPublished"):
        published.assertPublished("thread:message", count=0)


# --- Decorator and mixin -----------------------------------------------------------------------------


@fake_publisher()
def test_decorated_test_may_take_the_record(published):
    publish("queue:updated", {})
    published.assertPublished("queue:updated")


@fake_publisher()
async def test_decorated_asynchronous_test_may_take_the_record(published):
    await apublish("queue:updated", {})
    published.assertPublished("queue:updated")


def test_decorated_function_keeps_its_arguments_and_its_result():
    @fake_publisher()
    def double(number: int) -> int:
        publish("queue:updated", {})
        return 2 * number

    assert double(4) == 8


class Cases(PublishedMixin, DjangoTestCase):
    def test_record(self):
        with self.captureOnCommitCallbacks(execute=True):
            publish("queue:updated", {})
        self.published.assertPublished("queue:updated", count=1)

    def test_every_test_has_its_own(self):
        self.published.assertNothingPublished()
        assert online("attendants") == []
        with self.captureOnCommitCallbacks(execute=True):
            publish("queue:updated", {})
        assert len(self.published) == 1


class PlainCases(PublishedMixin, unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        publish("queue:updated", {})  # without super().setUp()

    async def test_asynchronous_case(self):
        await apublish("queue:updated", {})
        self.published.assertPublished("queue:updated", count=2)
