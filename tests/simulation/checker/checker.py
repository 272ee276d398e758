"""What is checked at each event, and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from realtime.protocol.rooms import group_name
from tests.simulation.checker.answers import Answers
from tests.simulation.checker.frames import Frames
from tests.simulation.checker.publications import Publications
from tests.simulation.checker.views import LIVE, UNCERTAIN, Asked, Segment, View
from tests.simulation.clock import EPOCH

if TYPE_CHECKING:
    from tests.simulation.clients import Client
    from tests.simulation.sockets import Frame, Socket


class Violation(AssertionError):
    """A promise was broken."""


class Checker(Publications, Frames, Answers):
    """Raises `Violation` (by way of `fail`) as soon as something is wrong."""

    # --- What Redis knows ------------------------------------------------------------------------

    def state(self) -> dict[str, tuple[int, int, int]]:
        """How much of everything Redis knows: for `lose`."""
        return {
            group: (
                len(self.history(group).order),
                len(self.expected[group]) if group in self.expected else -1,
                self.history(group).cut,
            )
            for group in {**self.histories, **self.expected}
        }

    def lose(self, kept: dict[str, tuple[int, int, int]], since: float) -> None:
        """Redis has lost what it was told since then."""
        self.losses += 1
        self.last_loss = self.now()
        if not kept:
            self.wiped_at = self.now()
        self.orders = [order for order in self.orders if order.added_at < since] if kept else []
        self.signals = [(at, signal) for at, signal in self.signals if kept and at < since]
        for view in self.views.values():
            self.forgive(view)
        for group, history in self.histories.items():
            number, _, cut = kept.get(group, (0, -1, 0))
            history.keep(number, cut, self.now(), since - EPOCH, self._listening(group))
            if not kept:
                history.lost.clear()  # when everything is lost, all are told
        self.expected = {
            group: numbers[: kept[group][1]]
            for group, numbers in self.expected.items()
            if kept.get(group, (0, -1, 0))[1] >= 0
        }

    def _listening(self, group: str) -> list[Segment]:
        return [
            segment
            for view in self.views.values()
            for room, segment in view.rooms.items()
            if segment.state == LIVE and group_name(view.socket.namespace, room) == group
        ]

    # --- What clients ask ------------------------------------------------------------------------

    def opened(self, socket: Socket) -> None:
        self.views[socket] = View(socket)

    def gone(self, socket: Socket) -> None:
        self.views.pop(socket, None)

    def asked(self, socket: Socket, id: str, event: str, data: dict[str, Any]) -> None:
        self.views[socket].asked[id] = Asked(event, data, self.now())

    # --- What is written -------------------------------------------------------------------------

    def written(self, socket: Socket, frame: Frame) -> None:
        """A frame to a connection."""
        if (view := self.views.get(socket)) is None:
            return
        self.frames += 1
        if view.order:
            self.fail(f"{socket}: {frame} was written after {view.order}")
        event = frame["event"]
        if "offset" in frame:
            self.published(view, frame["room"], int(frame["offset"]), frame)
        elif "room" in frame:
            self.said(view, frame["room"], frame)
        elif event == "connection:ready":
            self.ready(view, frame["data"])
        elif event in {"ack", "error"} and "id" in frame:
            self.answered(view, frame)
        elif event == "room:gap":
            self.gap(view, **frame["data"])
        elif event == "room:left":
            view.rooms.pop(frame["data"]["room"], None)
            view.left[frame["data"]["room"]] = self.now()

    def closing(self, socket: Socket, code: int) -> None:
        """The host closes a connection: nothing is written to it any more."""
        self.gone(socket)

    # --- The end ---------------------------------------------------------------------------------

    def settled(self, clients: list[Client]) -> None:
        """Everything is whole again, and was quiet for a while."""
        for client in clients:
            self._check_client(client)
        for group, expected in self.expected.items():
            self.check_complete(group, expected)
        for order in self.orders:
            self.check_order(order)

    def _check_client(self, client: Client) -> None:
        socket = client.socket
        if socket is None or socket not in self.views or not socket.connection_id:
            self.fail(f"{client} is not connected ({socket})")
            return
        view = self.views[socket]
        if view.asked:
            self.fail(f"{socket}: no answer to {view.asked}")
        for thread in sorted(client.wanted):
            if f"thread:{thread}" not in view.rooms:
                self.fail(f"{socket}: is not in thread:{thread}")
        for room, segment in view.rooms.items():
            history = self.history(group_name(socket.namespace, room))
            newest = history.newest(socket.connection_id)
            if any(
                lost.known_at < self.now()
                and any(one is segment and segment.since <= since for one, since in lost.lacked_by)
                and not any(one is segment for one in lost.had_by)
                for lost in history.lost.values()
            ):
                self.fail(
                    f"{socket}: has {room} up to {segment.position}; what Redis lost before was never told"
                )
            if segment.since < self.wiped_at:
                self.fail(
                    f"{socket}: Redis lost everything since {room} began at {segment.position}, and it was not told"
                )
            if segment.state == UNCERTAIN and room.removeprefix("thread:") not in client.wanted:
                continue  # it was refused, and did not ask again
            if segment.state != LIVE:
                self.fail(f"{socket}: is {segment.state} in {room}")
            elif (
                newest is not None
                and segment.position is None
                and history.publications[newest].at <= segment.since
            ):
                continue  # the gap was told after it
            elif newest is not None and (segment.position or 0) < newest:
                self.fail(f"{socket}: has {room} up to {segment.position}, and not {newest}")
