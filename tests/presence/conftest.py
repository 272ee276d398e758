from __future__ import annotations

import pytest

from presence.recorder import ghosts
from presence.recorder import recorder as module
from realtime.conf import Conf
from realtime.survey import ask as asking
from tests.presence.recording import Clock
from tests.presence.support import System

from .world import World


@pytest.fixture
def world(realtime_redis: str) -> World:
    return World()


@pytest.fixture
def ana(world: World) -> World:
    """A world in which Ana is online, and that was announced."""
    world.connect()
    world.transitions()
    return world


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches follow each other at once, while leases and grace periods are as long as in production."""
    monkeypatch.setattr(Conf, "batch_interval", 0.05)


@pytest.fixture(autouse=True)
def patient(patient_outbox: None) -> None:
    """What an operator does is sent at once, on a busy machine, too."""


@pytest.fixture
def clock(monkeypatch, settings) -> Clock:
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 10, "GRACE_PERIOD": 60}
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(ghosts, "time", clock)
    return clock


@pytest.fixture
def system(monkeypatch) -> System:
    system = System()
    monkeypatch.setattr(asking, "ask", system.ask)
    return system


@pytest.fixture
def without_redis(realtime_redis: str, settings) -> None:
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "unix:///nowhere/redis.sock"}
