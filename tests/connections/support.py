"""What the tests of connections share."""

from __future__ import annotations

from typing import Any

from realtime.connections.registry import ConnectionRegistry


def consumer() -> Any:
    """The one connection of this process, from inside."""
    (only,) = ConnectionRegistry.current().connections.values()
    return only
