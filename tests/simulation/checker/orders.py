"""Orders of operators: nothing is written to a connection after its host has received one that bars it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tests.simulation.checker.books import Books
from tests.simulation.checker.views import BARRED, View
from tests.simulation.clock import EPOCH

if TYPE_CHECKING:
    from tests.simulation.host import Host
    from tests.simulation.network import Link

_WORDS = ("thread:grant", "thread:revoke")
_SIGNALS = {
    "thread:revoke": "ThreadRevoked",
    "thread:expel": "ThreadRevoked",
    "user:disconnect": "UserDisconnected",
    "token:revoke": "TokenRevoked",
}
"""On a user and a thread; the last one counts."""


@dataclass(slots=True)
class Order:
    """A control event that was added to the bus."""

    event: str
    data: dict[str, Any]
    at: float
    """Redis' clock, in whole milliseconds, as the entry's id has it."""
    added_at: float
    """The same, exactly: what Redis keeps is not decided by the millisecond."""


class Orders(Books):
    """Grants, revokes and disconnects, and the signals that hosts receive of them."""

    def watch(self, link: Link, is_instance: bool, channel: bytes, payload: bytes) -> None:
        """Something was sent to a host by Pub/Sub: what it orders holds once it has been received."""
        if is_instance and payload[:1] == b"M" and b"control.signal" in payload:
            signal = msgspec.msgpack.decode(payload[1:])["signal"]
            link.marks.append((link.down.sent, lambda: self._signalled(link.host, signal)))

    def broadcast(self, channel: bytes, payload: bytes) -> None:
        """Something is sent to all instances, or to those of them that can hear it."""
        if payload[:1] == b"C" and channel.startswith(self.log):
            self.history(channel[len(self.log) : -6].decode()).cut = int(payload[1:])
        if payload[:1] == b"M" and b"control.signal" in payload:
            signal = msgspec.msgpack.decode(payload[1:])["signal"]
            if self._is_recorded(signal):
                self.signals.append((EPOCH + self.now(), signal))

    def _is_recorded(self, signal: dict[str, Any]) -> bool:
        """Not if Redis has lost the order and its record since it was given, before the bridge sent the signal."""
        given = [order.data for order in self.orders if _SIGNALS.get(order.event) == signal["type"]]
        return any(all(signal.get(name, value) == value for name, value in data.items()) for data in given)

    def subscribed(self, link: Link, channel: bytes) -> None:
        """A host hears orders (again): those that it has missed hold, too, once it knows that."""
        if channel == self.control:
            missed = tuple(self.signals)
            link.marks.append((link.down.sent, lambda: self._hears_again(link.host, missed)))

    def _hears_again(self, host: Host, missed: Sequence[tuple[float, dict[str, Any]]]) -> None:
        for at, signal in missed:
            for view in self.views.values():
                is_there = view.socket.host is host and not view.socket.close_sent and not view.order
                if is_there and self._still_holds(view, at, signal):
                    self._bar_for_missed(view, signal)

    def _bar_for_missed(self, view: View, signal: dict[str, Any]) -> None:
        """No more publications. (Answers, and what others type, may be written until rights have been reviewed.)"""
        self._bar(view, signal)
        view.missed, view.order = view.order or view.missed, ""
        if segment := view.rooms.get(f"thread:{signal.get('thread_id')}"):
            segment.was_missed = segment.state == BARRED

    @staticmethod
    def forgive(view: View) -> None:
        """Redis may have lost the record of an order that its host has missed: then nothing tells of it any more."""
        view.missed = ""
        for segment in view.rooms.values():
            if segment.was_missed:
                segment.state, segment.was_missed = segment.before_bar, False

    def _still_holds(self, view: View, at: float, signal: dict[str, Any]) -> bool:
        """Whether an order that was given at some time (Redis' clock) concerns a connection as it is now."""
        if signal["type"] != "ThreadRevoked":
            return view.socket.ready_at <= at
        segment = view.rooms.get(f"thread:{signal['thread_id']}")
        granted = self.is_granted(signal["user_id"], signal["thread_id"])
        return segment is not None and segment.entered <= at and not granted

    def is_granted(self, user_id: str, thread_id: str) -> bool:
        """By the order of the bus: a bridge that is late signals a revoke after the grant that follows it was added."""
        right = {"thread_id": thread_id, "user_id": user_id}
        words = [order.event for order in self.orders if order.data == right and order.event in _WORDS]
        return words[-1:] == ["thread:grant"]

    def _signalled(self, host: Host, signal: dict[str, Any]) -> None:
        for view in self.views.values():
            if view.socket.host is host and not view.socket.close_sent:
                self._bar(view, signal)

    def _bar(self, view: View, signal: dict[str, Any]) -> None:
        socket, user = view.socket, (view.socket.namespace, view.socket.principal.user_id)
        is_theirs = user == (signal.get("namespace"), signal.get("user_id"))
        match signal["type"]:
            case "ThreadRevoked" if is_theirs:
                segment = view.rooms.get(f"thread:{signal['thread_id']}")
                # Who was expelled may come back.
                if segment is not None and (
                    signal["reason"] != "expelled" or segment.entered <= signal["at"]
                ):
                    if segment.state != BARRED:
                        segment.before_bar = segment.state
                    segment.state, segment.barred_at = BARRED, self.now()
                    segment.may_return = signal["reason"] == "expelled"
            case "UserDisconnected" if is_theirs and socket.ready_at <= signal["at"]:
                view.order = f"user:disconnect at {signal['at']}"
            case "TokenRevoked" if socket.principal.jti == signal["jti"] and socket.connection_id:
                view.order = "token:revoke"

    def check_order(self, order: Order) -> None:
        for view in self.views.values():
            if self._disobeys(view, order):
                self.fail(f"{view.socket}: {order} has had no effect on it")
        self._check_right(order)

    @staticmethod
    def _disobeys(view: View, order: Order) -> bool:
        socket, user = view.socket, (view.socket.namespace, view.socket.principal.user_id)
        segment = view.rooms.get(f"thread:{order.data.get('thread_id')}")
        match order.event:
            case "token:revoke":
                return order.at >= socket.ready_at and order.data["jti"] == socket.principal.jti
            case "user:disconnect":
                return order.at >= socket.ready_at and user == (
                    order.data["namespace"],
                    order.data["user_id"],
                )
            case "thread:expel":
                is_theirs = user == ("hub", order.data["user_id"])
                return is_theirs and segment is not None and order.at >= segment.entered
        return False

    def _check_right(self, order: Order) -> None:
        """The last word on a user and a thread counts."""
        if order.event != "thread:revoke" or order is not self._last_word(order):
            return
        for view in self.views.values():
            user = (view.socket.namespace, view.socket.principal.user_id)
            if (
                user == ("portal", order.data["user_id"])
                and f"thread:{order.data['thread_id']}" in view.rooms
            ):
                self.fail(f"{view.socket}: is still in thread {order.data['thread_id']} after {order}")

    def _last_word(self, order: Order) -> Order | None:
        same = [other for other in self.orders if other.event in _WORDS and other.data == order.data]
        return same[-1] if same else None
