"""What must hold, whatever happens: every publication once and in order, or a gap is told; not a byte after a revoke.

The checker knows what was published from the simulated Redis (everything that is added to a room's log passes by it),
and sees every frame at the moment it is written, which is where its place among the others is decided.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from realtime.protocol.rooms import group_name
from tests.simulation.clock import EPOCH

if TYPE_CHECKING:
    from tests.simulation.clients import Client, Frame, Socket
    from tests.simulation.host import Host
    from tests.simulation.network import Link


class Violation(AssertionError):
    """A promise was broken."""


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


_WORDS = ("thread:grant", "thread:revoke")
_SIGNALS = {
    "thread:revoke": "ThreadRevoked",
    "thread:expel": "ThreadRevoked",
    "user:disconnect": "UserDisconnected",
    "token:revoke": "TokenRevoked",
}
"""On a user and a thread; the last one counts."""
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


@dataclass(slots=True)
class Order:
    """A control event that was added to the bus."""

    event: str
    data: dict[str, Any]
    at: float
    """Redis' clock, in whole milliseconds, as the entry's id has it."""
    added_at: float
    """The same, exactly: what Redis keeps is not decided by the millisecond."""


class Checker:
    """Raises `Violation` (by way of `fail`) as soon as something is wrong."""

    def __init__(
        self, prefix: str, history_size: int, now: Callable[[], float], fail: Callable[[str], None]
    ) -> None:
        self._log = f"{prefix}:{{".encode()
        self._dead = f"{prefix}:dead".encode()
        self._size = history_size
        self._now = now
        self._fail = fail
        self.histories: dict[str, History] = {}
        self.expected: dict[str, list[int]] = {}
        """By group: the numbers of the messages that were added to the bus for it."""
        self._control = f"{prefix}:{{control}}:live".encode()
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

    # --- What Redis knows --------------------------------------------------------------------------

    def added(self, key: bytes, id: tuple[int, int], fields: list[bytes]) -> None:
        """An entry was added to some stream."""
        if key == self._dead:
            self._fail(f"dead letter: {fields}")
        if not key.startswith(self._log) or not key.endswith(b"}:log"):
            return
        group, raw = key[len(self._log) : -5].decode(), fields[1]
        start = 51 + int(raw[45:51])
        excluded = raw[51:start].decode().partition("\0")[0]
        message = msgspec.json.decode(raw[start:])
        history, position = self.history(group), int(raw[17:33])
        publication = Publication(int(raw[1:17]), excluded, message, self._now())
        if position in history.publications:
            self._fail(f"{group}: position {position} was used twice")
        if history.order and publication.previous != history.end:
            self._fail(f"{group}: {position} follows {publication.previous}, but the end was {history.end}")
        self._check_number(group, history, message)
        history.add(position, publication)

    def _check_number(self, group: str, history: History, message: dict[str, Any]) -> None:
        """Each message once, those of the stream in its order."""
        number = message["data"].get("number")
        if number is None:
            return
        for position in reversed(history.order[-200:]):
            data = history.publications[position].message["data"]
            if data.get("number") == number:
                self._fail(f"{group}: message {number} was published twice")
            if data.get("durable") and message["data"]["durable"] and data["number"] > number:
                self._fail(f"{group}: message {number} was published after {data['number']}")

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
        self.last_loss = self._now()
        if not kept:
            self.wiped_at = self._now()
        self.orders = [order for order in self.orders if order.added_at < since] if kept else []
        self.signals = [(at, signal) for at, signal in self.signals if kept and at < since]
        for view in self.views.values():
            self._forgive(view)
        for group, history in self.histories.items():
            number, _, cut = kept.get(group, (0, -1, 0))
            history.keep(number, cut, self._now(), since - EPOCH, self._listening(group))
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

    def entered(self, key: bytes) -> None:
        """Somebody has entered a room for the first time since Redis knows it: from now on it is published in."""
        if key.startswith(self._log) and key.endswith(b"}:room"):
            self.expected.setdefault(key[len(self._log) : -6].decode(), [])

    def expect(self, group: str, number: int) -> None:
        """A message was added to the bus for a room."""
        if group in self.expected:
            self.expected[group].append(number)

    # --- What clients ask --------------------------------------------------------------------------

    def opened(self, socket: Socket) -> None:
        self.views[socket] = View(socket)

    def gone(self, socket: Socket) -> None:
        self.views.pop(socket, None)

    def asked(self, socket: Socket, id: str, event: str, data: dict[str, Any]) -> None:
        self.views[socket].asked[id] = Asked(event, data, self._now())

    # --- What is written ---------------------------------------------------------------------------

    def written(self, socket: Socket, frame: Frame) -> None:
        """A frame to a connection."""
        if (view := self.views.get(socket)) is None:
            return
        self.frames += 1
        if view.order:
            self._fail(f"{socket}: {frame} was written after {view.order}")
        event = frame["event"]
        if "offset" in frame:
            self._published(view, frame["room"], int(frame["offset"]), frame)
        elif "room" in frame:
            self._said(view, frame["room"], frame)
        elif event == "connection:ready":
            self._ready(view, frame["data"])
        elif event in {"ack", "error"} and "id" in frame:
            self._answered(view, frame)
        elif event == "room:gap":
            self._gap(view, **frame["data"])
        elif event == "room:left":
            view.rooms.pop(frame["data"]["room"], None)
            view.left[frame["data"]["room"]] = self._now()

    def _published(self, view: View, room: str, position: int, frame: Frame) -> None:
        segment, socket = view.rooms.get(room), view.socket
        if view.missed:
            self._fail(f"{socket}: {frame} was written, although {view.missed} was missed")
        elif segment is None:
            self._fail(
                f"{socket}: {frame} was written, but it is not in {room} (before the ack, or after leaving)"
            )
        elif segment.state == BARRED:
            self._fail(f"{socket}: {frame} was written after a revoke that the host had received")
        elif segment.state == LIVE:
            self._check_follows(view, room, segment, position, frame)

    def _check_follows(self, view: View, room: str, segment: Segment, position: int, frame: Frame) -> None:
        history, id = self.history(group_name(view.socket.namespace, room)), view.socket.connection_id
        before, segment.position = segment.position, position
        if position in history.lost:
            history.lost[position].had_by.append(segment)
        publication = history.publications.get(position)
        if publication is None or publication.message["data"] != frame["data"]:
            self._fail(f"{view.socket}: {frame} was never published")
        elif publication.excluded == id:
            self._fail(f"{view.socket}: {frame} was not for this connection")
        elif before is None:
            if position <= segment.floor:
                self._fail(
                    f"{view.socket}: {frame} was written after a gap, and had come before {segment.floor}"
                )
        elif not history.follows(position, before, id):
            what = "came again, or late" if position <= before else "came, and something before it did not"
            self._fail(f"{view.socket}: {frame} {what}; the one before was {before}")

    def _said(self, view: View, room: str, frame: Frame) -> None:
        segment = view.rooms.get(room)
        if segment is None or (segment.state == BARRED and not segment.was_missed):
            self._fail(f"{view.socket}: {frame} was written, but it is not in {room}")

    def _ready(self, view: View, data: dict[str, Any]) -> None:
        view.socket.connection_id = data["connection_id"]
        view.socket.ready_at = view.socket.world.redis.now
        for room, offset in data["rooms"].items():
            known_since = self._known_since(view.socket, room)
            view.rooms[room] = Segment(
                int(offset), self._now(), view.socket.ready_at, known_since=known_since
            )

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

    def _gap(self, view: View, room: str, reason: str) -> None:
        self.gaps += 1
        segment = view.rooms.get(room)
        if segment is None or segment.state == BARRED:
            self._fail(f"{view.socket}: told of a gap in {room}, but it is not in it")
            return
        if segment.state == LIVE and segment.position is not None:
            history = self.history(group_name(view.socket.namespace, room))
            known_since = min(segment.since, segment.known_since)
            may_be_lost = self.last_loss >= known_since or not history.remembers(segment.position, self._size)
            if reason == "lost" and not may_be_lost:
                self._fail(
                    f"{view.socket}: told of a gap in {room} after {segment.position}, but nothing was lost"
                )
            segment.floor, segment.position = segment.position, None
        if reason == "lost":
            self.history(group_name(view.socket.namespace, room)).notice(segment, self._size, self._now())
        segment.since = self._now()

    # --- Answers -----------------------------------------------------------------------------------

    def _answered(self, view: View, frame: Frame) -> None:
        asked = view.asked.pop(frame["id"], None)
        if asked is None:
            self._fail(f"{view.socket}: {frame} answers what was not asked, or was answered before")
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
            self._fail(f"{view.socket}: {asked} was answered with an internal error")
        for room in asked.data.get("rooms", [f"thread:{asked.data.get('thread_id')}"]):
            if code == "forbidden":
                view.rooms.pop(room, None)
            elif room in view.rooms and view.rooms[room].state != BARRED:
                view.rooms[room].state = UNCERTAIN
            elif room not in view.rooms and view.left.get(room, -1.0) < asked.at:
                view.rooms[room] = Segment(None, self._now(), view.socket.world.redis.now, UNCERTAIN)

    def _joined(self, view: View, asked: Asked, room: str, answer: dict[str, Any]) -> None:
        before, offset, now = view.rooms.get(room), int(answer["offset"]), view.socket.world.redis.now
        if (
            before is not None
            and before.state == BARRED
            and asked.at <= before.barred_at
            and not before.may_return
            and not self._is_granted(view.socket.principal.user_id, room.removeprefix("thread:"))
        ):
            return  # acknowledged, and about to be told that it had to leave
        known_since = before.since if before is not None else self._now()
        if before is not None and before.state != LIVE:
            before = None
        # With an offset it leaves, and enters again.
        entered = before.entered if before is not None and "recovered" not in answer else now
        view.rooms[room] = Segment(offset, self._now(), entered, known_since=known_since)
        if "recovered" in answer:
            self._check_recovery(view, asked, room, answer, before)
        elif before is not None:
            view.rooms[room].since = before.since
            self._check_again(view, room, before, offset)

    def _check_again(self, view: View, room: str, before: Segment, offset: int) -> None:
        """It was in the room already: where it stands may be ahead only of what is for other connections."""
        history, id = self.history(group_name(view.socket.namespace, room)), view.socket.connection_id
        if before.position not in {None, offset} and self._skipped(history, before.position, offset, id):
            self._fail(f"{view.socket}: joined {room} again at {offset}, but had {before.position}")

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
                self._fail(f"{view.socket}: {has} of {room} was written before the ack, which says {offset}")
            return
        self.recoveries += 1
        for position, lost in history.lost.items():
            if position > int(since):  # its process may not have heard of it yet
                lost.lacked_by.append((view.rooms[room], self._now()))
        if offset != since:
            self._fail(f"{view.socket}: {room} recovered from {offset}, not {since}")
        # What its process has not heard of yet is no more missed than what is published a moment later.
        if self.last_loss < asked.at and answer["missed"] > history.after(int(since)):
            self._fail(f"{view.socket}: {answer} for {room}; {history.after(int(since))} came after it")

    # --- Orders ------------------------------------------------------------------------------------

    def watch(self, link: Link, is_instance: bool, channel: bytes, payload: bytes) -> None:
        """Something was sent to a host by Pub/Sub: what it orders holds once it has been received."""
        if is_instance and payload[:1] == b"M" and b"control.signal" in payload:
            signal = msgspec.msgpack.decode(payload[1:])["signal"]
            link.marks.append((link.down.sent, lambda: self._signalled(link.host, signal)))

    def broadcast(self, channel: bytes, payload: bytes) -> None:
        """Something is sent to all instances, or to those of them that can hear it."""
        if payload[:1] == b"C" and channel.startswith(self._log):
            self.history(channel[len(self._log) : -6].decode()).cut = int(payload[1:])
        if payload[:1] == b"M" and b"control.signal" in payload:
            signal = msgspec.msgpack.decode(payload[1:])["signal"]
            if self._is_recorded(signal):
                self.signals.append((EPOCH + self._now(), signal))

    def _is_recorded(self, signal: dict[str, Any]) -> bool:
        """Not if Redis has lost the order and its record since it was given, before the bridge sent the signal."""
        given = [order.data for order in self.orders if _SIGNALS.get(order.event) == signal["type"]]
        return any(all(signal.get(name, value) == value for name, value in data.items()) for data in given)

    def subscribed(self, link: Link, channel: bytes) -> None:
        """A host hears orders (again): those that it has missed hold, too, once it knows that."""
        if channel == self._control:
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
    def _forgive(view: View) -> None:
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
        granted = self._is_granted(signal["user_id"], signal["thread_id"])
        return segment is not None and segment.entered <= at and not granted

    def _is_granted(self, user_id: str, thread_id: str) -> bool:
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
                    segment.state, segment.barred_at = BARRED, self._now()
                    segment.may_return = signal["reason"] == "expelled"
            case "UserDisconnected" if is_theirs and socket.ready_at <= signal["at"]:
                view.order = f"user:disconnect at {signal['at']}"
            case "TokenRevoked" if socket.principal.jti == signal["jti"] and socket.connection_id:
                view.order = "token:revoke"

    def closing(self, socket: Socket, code: int) -> None:
        """The host closes a connection: nothing is written to it any more."""
        self.gone(socket)

    # --- The end -----------------------------------------------------------------------------------

    def settled(self, clients: list[Client]) -> None:
        """Everything is whole again, and was quiet for a while."""
        for client in clients:
            self._check_client(client)
        for group, expected in self.expected.items():
            self._check_complete(group, expected)
        for order in self.orders:
            self._check_order(order)

    def _check_client(self, client: Client) -> None:
        socket = client.socket
        if socket is None or socket not in self.views or not socket.connection_id:
            self._fail(f"{client} is not connected ({socket})")
            return
        view = self.views[socket]
        if view.asked:
            self._fail(f"{socket}: no answer to {view.asked}")
        for thread in sorted(client.wanted):
            if f"thread:{thread}" not in view.rooms:
                self._fail(f"{socket}: is not in thread:{thread}")
        for room, segment in view.rooms.items():
            history = self.history(group_name(socket.namespace, room))
            newest = history.newest(socket.connection_id)
            if any(
                lost.known_at < self._now()
                and any(one is segment and segment.since <= since for one, since in lost.lacked_by)
                and not any(one is segment for one in lost.had_by)
                for lost in history.lost.values()
            ):
                self._fail(
                    f"{socket}: has {room} up to {segment.position}; what Redis lost before was never told"
                )
            if segment.since < self.wiped_at:
                self._fail(
                    f"{socket}: Redis lost everything since {room} began at {segment.position}, and it was not told"
                )
            if segment.state == UNCERTAIN and room.removeprefix("thread:") not in client.wanted:
                continue  # it was refused, and did not ask again
            if segment.state != LIVE:
                self._fail(f"{socket}: is {segment.state} in {room}")
            elif (
                newest is not None
                and segment.position is None
                and history.publications[newest].at <= segment.since
            ):
                continue  # the gap was told after it
            elif newest is not None and (segment.position or 0) < newest:
                self._fail(f"{socket}: has {room} up to {segment.position}, and not {newest}")

    def _check_complete(self, group: str, expected: list[int]) -> None:
        history, wanted = self.history(group), set(expected)
        data = [history.publications[position].message["data"] for position in history.order]
        published = [each["number"] for each in data if each.get("number") in wanted]
        if published != expected:
            missing = sorted(wanted - set(published))
            self._fail(f"{group}: {missing} of the bus were never published, or all of them in another order")

    def _check_order(self, order: Order) -> None:
        for view in self.views.values():
            if self._disobeys(view, order):
                self._fail(f"{view.socket}: {order} has had no effect on it")
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
                self._fail(f"{view.socket}: is still in thread {order.data['thread_id']} after {order}")

    def _last_word(self, order: Order) -> Order | None:
        same = [other for other in self.orders if other.event in _WORDS and other.data == order.data]
        return same[-1] if same else None


def _sinces(event: str, data: dict[str, Any]) -> dict[str, str]:
    """By room: the offset that a client gave."""
    if event == "resume":
        return dict(data["rooms"])
    return {f"thread:{data['thread_id']}": data["since"]} if "since" in data else {}
