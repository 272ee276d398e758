from __future__ import annotations

import pytest

from realtime.bridge.read_size import READ_BYTES, READ_FIRST, READ_MOST, ReadSize


def entries(count: int, size: int = 100) -> list[tuple[bytes, list[bytes]]]:
    return [(b"%d-0" % number, [b"message", b"x" * size]) for number in range(count)]


def experienced() -> ReadSize:
    """That of a process which has run for a while."""
    size = ReadSize()
    for _ in range(10):
        size.adapt([])
    return size


def test_new_process_reads_one_entry_and_then_at_most_twice_as_many():
    size = ReadSize()
    counts = []
    for _ in range(10):
        counts.append(size.count)
        size.adapt(entries(size.count))
    assert counts == [1, 2, 4, 8, 16, 32, 64, 128, READ_MOST, READ_MOST]


def test_huge_entries_for_which_a_process_was_killed_are_read_one_by_one():
    size = ReadSize()
    for _ in range(20):
        assert size.count == 1
        size.adapt(entries(size.count, 4 << 20))


def test_more_is_read_at_once_while_there_is_more():
    size = experienced()
    for _ in range(10):
        assert size.adapt(entries(size.count))
    assert size.count == READ_MOST


def test_after_a_failure_half_as_many_are_read_at_once():
    size = experienced()
    assert size.adapt(entries(READ_FIRST))
    before = size.count
    size.failed()
    assert size.count == before // 2


def test_failure_is_not_forgotten_because_nothing_comes_behind_what_failed():
    size = experienced()
    for _ in range(5):
        size.failed()
    before = size.count
    size.adapt(entries(size.count))
    size.adapt([])
    size.failed()
    assert size.count < before


def test_after_a_quiet_while_it_begins_anew():
    size = experienced()
    size.adapt(entries(size.count))
    assert not size.adapt(entries(1))
    assert size.count == READ_FIRST


@pytest.mark.parametrize("each", [10_000, 60_000, 256_000])
def test_of_large_entries_fewer_are_read_at_once(each: int):
    size = experienced()
    for _ in range(5):
        size.adapt(entries(size.count, each))
        assert size.count * each <= READ_BYTES * 1.1


def test_after_failures_a_single_entry_is_read_and_then_more_one_by_one():
    size = experienced()
    for _ in range(20):
        size.failed()
    assert size.count == 1
    for count in range(2, 20):
        size.adapt(entries(size.count))
        assert size.count == count


def test_after_failures_and_a_quiet_while_it_grows_fast_again():
    size = experienced()
    size.failed()
    size.adapt(entries(1))
    for _ in range(5):
        size.adapt(entries(size.count))
    assert size.count == READ_MOST
