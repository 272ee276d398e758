from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.connections.rate_limit import Bucket


def test_a_burst_passes_and_the_next_has_to_wait():
    bucket = Bucket()
    assert [bucket.take(1000.0, 10, 5) for _ in range(5)] == [0] * 5
    assert bucket.take(1000.0, 10, 5) == pytest.approx(0.1)


def test_who_waits_as_long_as_told_passes():
    bucket = Bucket()
    now = 1000.0
    for _ in range(100):
        if wait := bucket.take(now, 10, 5):
            now += wait + 1e-6
            assert bucket.take(now, 10, 5) == 0


def test_after_a_pause_there_is_a_whole_burst_again():
    bucket = Bucket()
    for _ in range(5):
        bucket.take(1000.0, 10, 5)
    assert [bucket.take(1001.0, 10, 5) for _ in range(5)] == [0] * 5
    assert bucket.take(1001.0, 10, 5) > 0


def test_what_costs_more_passes_when_one_may_and_delays_the_next():
    bucket = Bucket()
    assert [bucket.take(1000.0, 10, 5, cost=4) for _ in range(2)] == [0, 0]
    assert bucket.take(1000.0, 10, 5) == pytest.approx(0.4)


def test_rate_of_zero_is_no_limit():
    bucket = Bucket()
    assert not any(bucket.take(1000.0, 0, 0) for _ in range(1000))


def test_ten_seconds_of_refusal_are_persistent():
    bucket = Bucket()
    for step in range(1100):
        bucket.take(1000 + step * 0.01, 10, 5)
    assert bucket.is_persistent


def test_a_pause_ends_persistence():
    bucket = Bucket()
    for step in range(900):
        bucket.take(1000 + step * 0.01, 10, 5)
    for step in range(300):
        bucket.take(1011 + step * 0.01, 10, 5)
    assert not bucket.is_persistent


@given(st.lists(st.floats(0, 2), max_size=200), st.floats(0.1, 100), st.integers(0, 50))
def test_never_more_than_burst_and_rate_allow(gaps: list[float], rate: float, burst: int):
    bucket, now, passed = Bucket(), 1000.0, 0
    for gap in gaps:
        now += gap
        passed += bucket.take(now, rate, burst) == 0
    assert passed <= max(burst, 1) + (now - 1000.0) * rate + 1e-6
