"""What goes into one batch, and what has to wait for the next."""

from __future__ import annotations

from typing import Any

import pytest

from realtime.bridge.batch import BATCH_BYTES, BATCH_ROOMS, in_batches
from realtime.bridge.bus_entry import BUS, BusEntry, published
from realtime.bridge.bus_handlers import Handlers
from tests.bridge.support import accepted, message

pytestmark = pytest.mark.usefixtures("process")


def said(thread: str, number: int = 1, **more: Any) -> BusEntry:
    return message("thread:message", {"thread_id": thread, "message_id": number}, number, **more)


def revoked(thread: str, user: str, number: int = 1, **more: Any) -> BusEntry:
    return message("thread:revoke", {"thread_id": thread, "user_id": user}, number, **more)


def parts(*messages: BusEntry) -> list[int]:
    return [len(part) for part in in_batches(messages, Handlers())]


def test_batch_is_bounded_by_bytes():
    messages = [
        message("thread:message", {"thread_id": "42", "message_id": n, "body": "x" * 60_000}, n)
        for n in range(1, 101)
    ]
    found = list(in_batches(messages, Handlers()))
    assert [each for part in found for each in part] == messages
    assert max(sum(len(each.raw) for each in part) for part in found) <= BATCH_BYTES
    assert len(found) <= 7


def test_batch_is_bounded_by_rooms():
    messages = [
        message(
            "thread:message", {"thread_id": 1, "message_id": n}, n, rooms=[f"thread:{r}" for r in range(150)]
        )
        for n in range(1, 21)
    ]
    assert parts(*messages) == [BATCH_ROOMS // 300] * 6 + [2]


def test_control_work_begins_a_new_batch_only_after_what_it_concerns():
    assert parts(said("1"), said("2"), accepted("3"), accepted("4"), said("3"), said("4")) == [6]
    assert parts(said("1"), accepted("1"), said("1")) == [1, 2]
    assert parts(revoked("1", "ana"), said("1")) == [2]
    assert parts(said("1"), revoked("1", "ana"), said("1")) == [1, 2]
    assert parts(said("1", rooms=["user:ana"]), revoked("9", "ana")) == [1, 1]
    assert parts(said("1"), revoked("9", "ana"), revoked("8", "eva")) == [3]
    assert parts(said("1"), revoked("1", "ana"), revoked("1", "eva")) == [1, 2]
    assert parts(said("1", rooms=["user:eva"]), revoked("1", "ana")) == [1, 1]
    assert parts(said("1"), message("instance:drain", {"instance": "i"})) == [1, 1]  # it concerns no subject


def test_what_is_repeated_has_no_control_work():
    again = BUS.entry(b"2-0", [b"message", accepted("1").raw], "9" * 41)
    assert parts(said("1"), again) == [2]


def test_times_of_what_is_published_compare_with_entries():
    earlier, later = (
        published(b"{}").added_at(1_795_000_000_123_456),
        published(b"{}").added_at(1_795_000_000_123_457),
    )
    before = BUS.entry(b"1795000000122-99", [b"message", b"{}"], "")
    after = BUS.entry(b"1795000000124-0", [b"message", b"{}"], "")
    orders = [each.order for each in (before, earlier, later, after)]
    assert orders == sorted(set(orders))
    assert earlier.at == 1_795_000_000.123456
