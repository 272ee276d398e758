from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from realtime.testing.embedded_redis import EmbeddedRedis

# What a shell starts in the background ignores Ctrl-C, and so would every server that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing depends on how fast the machine is: pytest's own timeout ends what hangs.
hypothesis_settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("any machine")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: at the end no worker is left alone with one.

    (The Makefile's --no-loadscope-reorder keeps this order; pytest-xdist's own begins with the files of most tests.)
    """
    slow = {
        item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("faults")
    }
    items.sort(key=lambda item: (item.path not in slow, "e2e" not in item.path.parts))


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real server: the one that TEST_REDIS_URL names, or one of our own."""
    if url := os.environ.get("TEST_REDIS_URL"):
        yield url
    else:
        with EmbeddedRedis() as server:
            yield server.url


@pytest.fixture
def realtime_redis(redis_url: str, settings) -> str:
    """Settings that point at the real server, with a prefix of the test's own; returns the prefix."""
    from uuid import uuid4

    from realtime.outbox.writing import breaker

    breaker.reset()  # in a test before this one, Redis may have been away
    prefix = f"u{uuid4().hex[:12]}"
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": redis_url, "PREFIX": prefix}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "realtime.layers.RoomChannelLayer"}}
    return prefix


@pytest.fixture
def patient_outbox(settings) -> None:
    """The outbox waits a minute for Redis: the half second of production is too short for a busy machine."""
    settings.REALTIME = {**settings.REALTIME, "OUTBOX_WAIT": 60}


@pytest.fixture
def without_outbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone without the app, whose messages go straight to Redis."""
    monkeypatch.setattr("realtime.publisher.OUTBOX", "not installed")


@pytest.fixture
async def process(realtime_redis: str) -> AsyncIterator[str]:
    """What a socket process keeps per event loop, for one test; yields the prefix."""
    from channels.layers import get_channel_layer

    from presence import tracker
    from realtime.connections import registry
    from realtime.redis import client

    yield realtime_redis
    await tracker.PresenceTracker.close_all()
    if (here := registry.registries.pop()) is not None:
        await here.stop()
    await get_channel_layer().flush()
    await client.close()
