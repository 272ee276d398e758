"""What was ever published in a room, and what Redis has lost of it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.checker.views import Segment


@dataclass(slots=True)
class Publication:
    """As `append.lua` writes it."""

    previous: int
    excluded: str
    message: dict[str, Any]
    at: float


@dataclass(slots=True)
class Lost:
    """What Redis has lost of a room."""

    at: float
    kept: int
    """Publications that Redis still knew then."""
    had_by: list[Segment]
    """Only the processes of these know that there was something."""
    lacked_by: list[tuple[Segment, float]]
    """And since when: they have to be told after that."""
    known_at: float = float("inf")
    """When a process that had it noticed: all have to be told."""


class History:
    """All that was ever published in a room, and which of it Redis still knows to have been."""

    def __init__(self) -> None:
        self.publications: dict[int, Publication] = {}
        self.order: list[int] = []
        self.lost: dict[int, Lost] = {}
        """By position: what was published and then lost by Redis."""
        self.cut = 0
        """What was published before this position is not to be had any more."""

    def add(self, position: int, publication: Publication) -> None:
        self.publications[position] = publication
        self.order.append(position)

    @property
    def end(self) -> int:
        return max(self.cut, self.order[-1] if self.order else 0)

    def keep(self, number: int, cut: int, now: float, since: float, listening: Sequence[Segment]) -> None:
        """Redis has lost all but so many, and what it was told since then."""
        self.lost = {
            position: lost for position, lost in self.lost.items() if not since <= lost.known_at < now
        }
        for position in self.order[number:]:
            had = [one for one in listening if one.stands_at >= position]
            lacked = [(one, now) for one in listening if one.stands_at < position]
            self.lost[position] = Lost(now, number, had, lacked)
        del self.order[number:]
        self.cut = cut

    def notice(self, segment: Segment, size: int, now: float) -> None:
        """A process tells of a loss to a client of the room that had something which is lost."""
        for lost in self.lost.values():
            # A log that was trimmed meanwhile does not tell.
            if any(one is segment for one in lost.had_by) and len(self.order) - lost.kept < size:
                lost.known_at = min(lost.known_at, now)

    def after(self, position: int) -> int:
        return len(self.order) - bisect_right(self.order, position)

    def remembers(self, position: int, size: int) -> bool:
        """Whether a log of that size has all that came after a position."""
        if position < self.cut:
            return False
        if self.order and self.publications[self.order[0]].previous == position:
            return len(self.order) < size
        return position in self.order[-size:]

    def follows(self, position: int, before: int, connection_id: str) -> bool:
        """Whether there is nothing between the two for this connection."""
        while True:
            publication = self.publications.get(position)
            if publication is None:
                return False
            if publication.previous == before:
                return True
            position = publication.previous
            between = self.publications.get(position)
            if between is None or between.excluded != connection_id:
                return False

    def newest(self, connection_id: str) -> int | None:
        """The last one that is for this connection."""
        for position in reversed(self.order):
            if self.publications[position].excluded != connection_id:
                return position
        return None
