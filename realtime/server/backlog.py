"""How much waits for clients that read too slowly."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakSet

from realtime.telemetry import metrics


class Writing(Protocol):
    """A connection that is written to."""

    @property
    def unsent(self) -> int:
        """Bytes that wait for a peer that reads too slowly; 0 for one that does not."""


behind: WeakSet[Writing] = WeakSet()
"""The connections whose transport holds more than it wants to."""


def measure_backlog() -> None:
    """Set the metrics of what waits for clients that read too slowly."""
    unsent = [size for connection in behind if (size := connection.unsent)]
    metrics.BEHIND.set(len(unsent))
    metrics.QUEUE_BYTES.set(sum(unsent))
