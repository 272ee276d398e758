from __future__ import annotations

from typing import Any

import pytest

from realtime.layers import history
from realtime.protocol import catalogue
from realtime.redis.client import client
from tests.bridge.support import Room


@pytest.fixture
async def room() -> Room:
    return await Room().enter()


@pytest.fixture
def on_ended(monkeypatch):
    """Bus handlers of `chat:ended` for one test."""

    def register(*handlers: Any) -> None:
        handling = {**catalogue.catalogue().bus_handlers, "chat:ended": list(handlers)}
        monkeypatch.setattr(catalogue.catalogue(), "bus_handlers", handling)

    return register


@pytest.fixture(params=["room", "log", "position", "count"])
async def damaged(request: pytest.FixtureRequest, process: str) -> None:
    """Another program wrote to thread 13: one of its keys is not what a room has, or its numbers are none."""
    base = history.base("hub.thread.13")
    match request.param:
        case "room":
            await client().set(f"{base}:room", "not ours")
        case "log":
            await client().hset(f"{base}:room", "position", f"{1:016}")
            await client().set(f"{base}:log", "not ours")
        case name:
            await client().hset(f"{base}:room", mapping={"position": f"{1:016}", name: "none"})
