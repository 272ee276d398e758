"""Connections as their clients can see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.sockets import Socket

LIVE, UNCERTAIN, BARRED = "live", "uncertain", "barred"


@dataclass(slots=True)
class Segment:
    """What a connection has of a room since it was last told where it stands."""

    position: int | None
    """None: it was told of a gap, and learns from the next frame where it is."""
    since: float
    """When it began."""
    entered: float
    """Redis' clock when it was told that it is in."""
    state: str = LIVE
    floor: int = 0
    before_bar: str = LIVE
    """Its state when an order barred it."""
    barred_at: float = 0.0
    may_return: bool = False
    """What bars it concerns those only who were in at that moment: a join that was under way may be later."""
    known_since: float = float("inf")
    """Since when its host may have known it: a join of a room that it is in does not ask Redis."""
    was_missed: bool = False
    """What bars it is an order that its host has missed, and can hear again."""

    @property
    def stands_at(self) -> int:
        return self.floor if self.position is None else self.position


@dataclass(slots=True)
class Asked:
    """A frame with an id."""

    event: str
    data: dict[str, Any]
    at: float


class View:
    """A connection as its client can see it."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.rooms: dict[str, Segment] = {}
        self.asked: dict[str, Asked] = {}
        self.order = ""
        """Why nothing more may be written to it."""
        self.missed = ""
        """Why no more publications may be: an order that its host has missed, and can hear again."""
        self.left: dict[str, float] = {}
        """Rooms that it was told to have left, and when."""
