"""Answers to what clients have asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from realtime.protocol.rooms import group_name
from tests.simulation.checker.history import History
from tests.simulation.checker.orders import Orders
from tests.simulation.checker.views import BARRED, LIVE, UNCERTAIN, Asked, Segment, View

if TYPE_CHECKING:
    from tests.simulation.sockets import Frame


class Answers(Orders):
    """One answer a request, which says where the connection is in a room."""

    def answered(self, view: View, frame: Frame) -> None:
        asked = view.asked.pop(frame["id"], None)
        if asked is None:
            self.fail(f"{view.socket}: {frame} answers what was not asked, or was answered before")
        elif frame["event"] == "error":
            self._refused(view, asked, frame["data"]["code"])
        elif asked.event == "join:thread":
            self._joined(view, asked, frame["data"]["room"], frame["data"])
        elif asked.event == "leave:thread":
            view.rooms.pop(f"thread:{asked.data['thread_id']}", None)
        elif asked.event == "resume":
            for room, answer in frame["data"]["rooms"].items():
                if "error" in answer:
                    view.rooms.pop(room, None)
                else:
                    self._joined(view, asked, room, answer)

    def _refused(self, view: View, asked: Asked, code: str) -> None:
        if code == "internal":
            self.fail(f"{view.socket}: {asked} was answered with an internal error")
        for room in asked.data.get("rooms", [f"thread:{asked.data.get('thread_id')}"]):
            if code == "forbidden":
                view.rooms.pop(room, None)
            elif room in view.rooms and view.rooms[room].state != BARRED:
                view.rooms[room].state = UNCERTAIN
            elif room not in view.rooms and view.left.get(room, -1.0) < asked.at:
                view.rooms[room] = Segment(None, self.now(), view.socket.world.redis.now, UNCERTAIN)

    def _joined(self, view: View, asked: Asked, room: str, answer: dict[str, Any]) -> None:
        before, offset, now = view.rooms.get(room), int(answer["offset"]), view.socket.world.redis.now
        if (
            before is not None
            and before.state == BARRED
            and asked.at <= before.barred_at
            and not before.may_return
            and not self.is_granted(view.socket.principal.user_id, room.removeprefix("thread:"))
        ):
            return  # acknowledged, and about to be told that it had to leave
        known_since = before.since if before is not None else self.now()
        if before is not None and before.state != LIVE:
            before = None
        # With an offset it leaves, and enters again.
        entered = before.entered if before is not None and "recovered" not in answer else now
        view.rooms[room] = Segment(offset, self.now(), entered, known_since=known_since)
        if "recovered" in answer:
            self._check_recovery(view, asked, room, answer, before)
        elif before is not None:
            view.rooms[room].since = before.since
            self._check_again(view, room, before, offset)

    def _check_again(self, view: View, room: str, before: Segment, offset: int) -> None:
        """It was in the room already: where it stands may be ahead only of what is for other connections."""
        history, id = self.history(group_name(view.socket.namespace, room)), view.socket.connection_id
        if before.position not in {None, offset} and self._skipped(history, before.position, offset, id):
            self.fail(f"{view.socket}: joined {room} again at {offset}, but had {before.position}")

    @staticmethod
    def _skipped(history: History, first: int, last: int, connection_id: str) -> bool:
        """Whether something between two positions is for this connection."""
        between = [position for position in history.order if first < position <= last]
        return last < first or any(history.publications[each].excluded != connection_id for each in between)

    def _check_recovery(
        self, view: View, asked: Asked, room: str, answer: dict[str, Any], before: Segment | None
    ) -> None:
        offset, since = answer["offset"], _sinces(asked.event, asked.data)[room]
        history = self.history(group_name(view.socket.namespace, room))
        if not answer["recovered"]:
            has = (
                before.position if before and self.last_loss < min(before.since, before.known_since) else None
            )
            if has is not None and has > int(offset):
                self.fail(f"{view.socket}: {has} of {room} was written before the ack, which says {offset}")
            return
        self.recoveries += 1
        for position, lost in history.lost.items():
            if position > int(since):  # its process may not have heard of it yet
                lost.lacked_by.append((view.rooms[room], self.now()))
        if offset != since:
            self.fail(f"{view.socket}: {room} recovered from {offset}, not {since}")
        # What its process has not heard of yet is no more missed than what is published a moment later.
        if self.last_loss < asked.at and answer["missed"] > history.after(int(since)):
            self.fail(f"{view.socket}: {answer} for {room}; {history.after(int(since))} came after it")


def _sinces(event: str, data: dict[str, Any]) -> dict[str, str]:
    """By room: the offset that a client gave."""
    if event == "resume":
        return dict(data["rooms"])
    return {f"thread:{data['thread_id']}": data["since"]} if "since" in data else {}
