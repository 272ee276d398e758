"""Systems in memory with settings of their own, and what is left of them."""

from __future__ import annotations

import threading
import time

import pytest
from django.conf import settings

from realtime.conf import conf
from realtime.publisher import online
from realtime.testing import in_memory
from tests.servers import until


def test_grace_period_passes():
    with in_memory(GRACE_PERIOD=0.5, HEARTBEAT_INTERVAL=1, AWAY_AFTER=3, NODE_LEASE=2) as system:
        watcher = system.client.sync(user=8, role="admin")
        with system.client.sync(user=7, role="attendant"):
            watcher.expect("attendant:online", user_id=7)
        watcher.expect("attendant:offline", user_id=7)


def threads() -> list[str]:
    """The threads of systems in memory that are running."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name == "realtime.testing" or "process_request_thread" in name]


def test_nothing_is_left_of_it():
    before = settings.REALTIME
    for _ in range(2):
        with in_memory(PREFIX="own") as system:
            assert conf().redis_url == system.redis_url
            system.client.sync(user=1, role="attendant")
            assert online("attendants") == ["1"]
            assert len(threads()) > 2
    assert before == settings.REALTIME
    until(lambda: not threads())


def test_error_in_the_block_is_raised_and_nothing_is_left():
    before = settings.REALTIME
    with pytest.raises(ZeroDivisionError), in_memory():
        raise ZeroDivisionError
    assert before == settings.REALTIME


def test_quiet_subscription_is_kept(caplog):
    with in_memory() as system:
        ana = system.client.sync(user=1, role="attendant")
        time.sleep(3)  # more than a quarter of the time-out: a sign of life was asked for
        ana.expect_nothing("room:gap")
    assert "subscription lost" not in caplog.messages
