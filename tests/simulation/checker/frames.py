"""Frames that no client has asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from realtime.protocol.rooms import group_name
from tests.simulation.checker.books import Books
from tests.simulation.checker.views import BARRED, LIVE, Segment, View

if TYPE_CHECKING:
    from tests.simulation.sockets import Frame, Socket


class Frames(Books):
    """Publications in their order, to those that are in the room; a gap where something is lost."""

    def published(self, view: View, room: str, position: int, frame: Frame) -> None:
        segment, socket = view.rooms.get(room), view.socket
        if view.missed:
            self.fail(f"{socket}: {frame} was written, although {view.missed} was missed")
        elif segment is None:
            self.fail(
                f"{socket}: {frame} was written, but it is not in {room} (before the ack, or after leaving)"
            )
        elif segment.state == BARRED:
            self.fail(f"{socket}: {frame} was written after a revoke that the host had received")
        elif segment.state == LIVE:
            self._check_follows(view, room, segment, position, frame)

    def _check_follows(self, view: View, room: str, segment: Segment, position: int, frame: Frame) -> None:
        history, id = self.history(group_name(view.socket.namespace, room)), view.socket.connection_id
        before, segment.position = segment.position, position
        if position in history.lost:
            history.lost[position].had_by.append(segment)
        publication = history.publications.get(position)
        if publication is None or publication.message["data"] != frame["data"]:
            self.fail(f"{view.socket}: {frame} was never published")
        elif publication.excluded == id:
            self.fail(f"{view.socket}: {frame} was not for this connection")
        elif before is None:
            if position <= segment.floor:
                self.fail(
                    f"{view.socket}: {frame} was written after a gap, and had come before {segment.floor}"
                )
        elif not history.follows(position, before, id):
            what = "came again, or late" if position <= before else "came, and something before it did not"
            self.fail(f"{view.socket}: {frame} {what}; the one before was {before}")

    def said(self, view: View, room: str, frame: Frame) -> None:
        segment = view.rooms.get(room)
        if segment is None or (segment.state == BARRED and not segment.was_missed):
            self.fail(f"{view.socket}: {frame} was written, but it is not in {room}")

    def ready(self, view: View, data: dict[str, Any]) -> None:
        view.socket.connection_id = data["connection_id"]
        view.socket.ready_at = view.socket.world.redis.now
        for room, offset in data["rooms"].items():
            known_since = self._known_since(view.socket, room)
            view.rooms[room] = Segment(int(offset), self.now(), view.socket.ready_at, known_since=known_since)

    def _known_since(self, socket: Socket, room: str) -> float:
        """Since when other connections of the host have been in the room, and so it has known where the room ends."""
        return min(
            (
                view.rooms[room].since
                for view in self.views.values()
                if (view.socket.host, view.socket.namespace) == (socket.host, socket.namespace)
                and room in view.rooms
            ),
            default=float("inf"),
        )

    def gap(self, view: View, room: str, reason: str) -> None:
        self.gaps += 1
        segment = view.rooms.get(room)
        if segment is None or segment.state == BARRED:
            self.fail(f"{view.socket}: told of a gap in {room}, but it is not in it")
            return
        if segment.state == LIVE and segment.position is not None:
            history = self.history(group_name(view.socket.namespace, room))
            known_since = min(segment.since, segment.known_since)
            may_be_lost = self.last_loss >= known_since or not history.remembers(segment.position, self.size)
            if reason == "lost" and not may_be_lost:
                self.fail(
                    f"{view.socket}: told of a gap in {room} after {segment.position}, but nothing was lost"
                )
            segment.floor, segment.position = segment.position, None
        if reason == "lost":
            self.history(group_name(view.socket.namespace, room)).notice(segment, self.size, self.now())
        segment.since = self.now()
