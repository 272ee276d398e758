from __future__ import annotations

from typing import Any

import pytest

from realtime.connections.registry import ConnectionRegistry
from realtime.protocol import catalogue
from realtime.protocol.catalogue import ClientEvent
from realtime.protocol.namespaces import namespaces
from realtime.protocol.payloads import Empty
from realtime.protocol.respelling import checked
from realtime.protocol.wire_types import annotated_ack


@pytest.fixture
def client_event(monkeypatch):
    """A client event for one test."""

    def register(handler: Any, name: str = "test:event") -> None:
        ack = annotated_ack(name, handler)
        event = ClientEvent(name, Empty, namespaces(), handler, ack, check=checked(ack))
        monkeypatch.setitem(catalogue.catalogue().client, name, event)

    return register


@pytest.fixture
async def registry() -> ConnectionRegistry:
    registry = ConnectionRegistry.current()
    await registry.start()
    return registry
