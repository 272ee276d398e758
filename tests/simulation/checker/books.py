"""What the checker has noted down of all that has happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.checker.history import History
from tests.simulation.checker.views import View

if TYPE_CHECKING:
    from tests.simulation.checker.orders import Order
    from tests.simulation.sockets import Socket


class Books:
    """What was published and ordered, and what each connection has of it."""

    def __init__(
        self, prefix: str, history_size: int, now: Callable[[], float], fail: Callable[[str], None]
    ) -> None:
        self.log = f"{prefix}:{{".encode()
        self.dead = f"{prefix}:dead".encode()
        self.size = history_size
        self.now = now
        self.fail = fail
        self.histories: dict[str, History] = {}
        self.expected: dict[str, list[int]] = {}
        """By group: the numbers of the messages that were added to the bus for it."""
        self.control = f"{prefix}:{{control}}:live".encode()
        self.orders: list[Order] = []
        self.signals: list[tuple[float, dict[str, Any]]] = []
        """What was sent to all instances, and when by Redis' clock."""
        self.views: dict[Socket, View] = {}
        self.last_loss = -1.0
        """When Redis last lost something."""
        self.wiped_at = -1.0
        """When it last lost everything."""
        self.frames = self.gaps = self.recoveries = self.losses = 0

    def history(self, group: str) -> History:
        return self.histories.setdefault(group, History())
