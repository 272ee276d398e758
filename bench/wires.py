"""The protocol of each system over a WebSocket: connecting, joining, typing, reconnecting."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any


class Kind(Enum):
    """How the load generator classifies a text frame of a server."""

    READY = auto()
    """The connection is authenticated and may be used."""
    ANSWER = auto()
    """The answer to a request of this client."""
    EVENT = auto()
    """A message that counts."""
    NOISE = auto()


@dataclass(frozen=True, slots=True)
class User:
    """A user who connects, and the one thread that they may join."""

    id: str
    token: str
    thread: str
    group: str = ""
    """The presence group of an attendant; a customer has none."""


@dataclass(frozen=True, slots=True)
class Position:
    """The state of a client that reconnects: the session's id and the last offset that it received in each room."""

    session: str
    offsets: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client has received before it lost its connection, as far as it tells its position."""

    hello: bytes = b""
    """The frame with which the connection became ready."""
    answer: bytes = b""
    """The answer to the last request."""
    message: bytes = b""
    """The last frame with a message."""
    change: bytes = b""
    """The last frame with a change of presence."""
    typing: bytes = b""
    """The last frame that said that a user has started or stopped typing."""


class Refused(Exception):
    """The server refused a client or its request."""


class Wire(ABC):
    """A protocol that the load generator speaks. It has no state: one object serves all connections."""

    pings: tuple[bytes, ...] = (b"\x89\x00", b"\x89\x04")
    """Bytes that every ping contains: received bytes are parsed at once only if they contain one of these."""

    typed = re.compile(rb'"user_id": ?"(?P<user>[^"]+)".*"typing": ?(?P<state>true|false)')
    """What an event says when a user has started or stopped typing."""
    changed = re.compile(rb'"user_id": ?"(?P<user>[^"]+)".*"status": ?"(?P<state>\w+)"')
    """What an event says when an attendant's presence has changed."""

    @abstractmethod
    def path(self, user: User, position: Position | None) -> str: ...

    def headers(self, user: User) -> str:
        return f"Authorization: Bearer {user.token}\r\n"

    def opening(self, user: User) -> bytes | None:
        """Return the frame that a client sends as soon as the WebSocket is open, if any."""
        return None

    def messages(self, payload: bytes) -> Sequence[bytes]:
        """Return the messages in a text frame."""
        return (payload,)

    @abstractmethod
    def receive(self, payload: bytes, user: User, position: Position | None) -> tuple[Kind, bytes | None]:
        """Return the kind of a message, and the answer to send, if any. Raises `Refused`."""

    @abstractmethod
    def join(self, user: User) -> bytes: ...

    @abstractmethod
    def typing(self, user: User, typing: bool) -> bytes: ...

    def presence(self, user: User, status: str) -> bytes:
        """Return the frame with which an attendant becomes `away` or `online`."""
        raise NotImplementedError

    def heartbeat(self) -> bytes | None:
        """Return the frame that an idle client sends from time to time, if any."""
        return None

    def recovery(self, user: User, position: Position) -> bytes | None:
        """Return the request of a reconnected client for missed messages; None if the handshake contains it."""
        return None

    def position(self, user: User, seen: Seen) -> Position:
        """Return the position of a client. It has received at least one message."""
        raise NotImplementedError


class Ours(Wire):
    def path(self, user: User, position: Position | None) -> str:
        path = "/hub/" if user.group else "/portal/"
        return path if position is None else f"{path}?resume=1"

    def receive(self, payload: bytes, user: User, position: Position | None) -> tuple[Kind, bytes | None]:
        if payload.startswith((b'{"event":"thread:', b'{"event":"attendant:')):
            return Kind.EVENT, None
        if payload.startswith(b'{"event":"connection:ready"'):
            return Kind.READY, None
        if payload.startswith(b'{"event":"ack"'):
            return Kind.ANSWER, None
        if payload.startswith(b'{"event":"error"') or b'"room:gap"' in payload:
            raise Refused(payload.decode())
        return Kind.NOISE, None

    def join(self, user: User) -> bytes:
        return b'{"event":"join:thread","data":{"thread_id":"%s"},"id":1}' % user.thread.encode()

    def typing(self, user: User, typing: bool) -> bytes:
        return b'{"event":"typing:%s","data":{"thread_id":"%s"}}' % (
            b"start" if typing else b"stop",
            user.thread.encode(),
        )

    def presence(self, user: User, status: str) -> bytes:
        return b'{"event":"presence:%s"}' % status.encode()

    def heartbeat(self) -> bytes | None:
        return b'{"event":"heartbeat"}'

    def recovery(self, user: User, position: Position) -> bytes | None:
        return json.dumps({"event": "resume", "data": {"rooms": position.offsets}, "id": 2}).encode()

    def position(self, user: User, seen: Seen) -> Position:
        last = [json.loads(frame) for frame in (seen.message, seen.change) if frame]
        return Position("", {event["room"]: str(event["offset"]) for event in last})


class SocketIO(Wire):
    """Engine.IO 4 and Socket.IO 5, over WebSocket from the start."""

    pings = (b"\x81\x012", *Wire.pings)

    def path(self, user: User, position: Position | None) -> str:
        return "/socket.io/?EIO=4&transport=websocket"

    def headers(self, user: User) -> str:
        return ""

    def receive(self, payload: bytes, user: User, position: Position | None) -> tuple[Kind, bytes | None]:
        match payload[:2]:
            case b"42":
                return Kind.EVENT, None
            case b"2":
                return Kind.NOISE, b"3"
            case b"0{":
                auth = {"token": user.token}
                if position is not None:
                    auth |= {"pid": position.session, "offset": position.offsets[""]}
                return Kind.NOISE, b"40" + json.dumps(auth).encode()
            case b"40":
                return Kind.READY, None
            case b"43":
                if b'"ok"' not in payload:
                    raise Refused(payload.decode())
                return Kind.ANSWER, None
            case b"41" | b"44":
                raise Refused(payload.decode())
        return Kind.NOISE, None

    def join(self, user: User) -> bytes:
        return b'420["join",{"thread_id":"%s"}]' % user.thread.encode()

    def typing(self, user: User, typing: bool) -> bytes:
        return b'42["typing",{"thread_id":"%s","typing":%s}]' % (
            user.thread.encode(),
            b"true" if typing else b"false",
        )

    def presence(self, user: User, status: str) -> bytes:
        return b'42["presence",{"status":"%s"}]' % status.encode()

    def position(self, user: User, seen: Seen) -> Position:
        # The client remembers the offset of whatever it received last: the one that is the greatest.
        offsets = [json.loads(frame[2:])[-1] for frame in (seen.message, seen.change, seen.typing) if frame]
        newest = max(offsets, key=lambda offset: [int(part) for part in offset.split("-")])
        return Position(json.loads(seen.hello[2:])["pid"], {"": newest})


class Centrifuge(Wire):
    """The JSON protocol of Centrifuge: commands, replies and pushes, several of which may share a frame."""

    pings = (b"\x81\x02{}", b"\n{}", b"{}\n", *Wire.pings)
    typed = re.compile(rb'"typing":(?P<state>true|false).*"user":"(?P<user>[^"]+)"')
    changed = re.compile(rb'"status":"(?P<state>\w+)".*"user":"(?P<user>[^"]+)"')
    _EPOCH = re.compile(rb'"epoch":"([^"]*)"')
    _OFFSET = re.compile(rb'"offset":(\d+)')

    def path(self, user: User, position: Position | None) -> str:
        return "/connection/websocket"

    def headers(self, user: User) -> str:
        return ""

    def opening(self, user: User) -> bytes | None:
        return b'{"id":1,"connect":{"token":"%s"}}' % user.token.encode()

    def messages(self, payload: bytes) -> Sequence[bytes]:
        return payload.split(b"\n")

    def receive(self, payload: bytes, user: User, position: Position | None) -> tuple[Kind, bytes | None]:
        if payload.startswith(b'{"push":{"channel":'):
            # A publisher receives its own publication, and its client ignores it.
            is_own = b'"typing":' in payload and b'"user":"%s"' % user.id.encode() in payload
            return (Kind.NOISE if is_own else Kind.EVENT), None
        if payload in (b"{}", b""):
            return Kind.NOISE, payload or None
        if payload.startswith(b'{"id":1,"connect":'):
            return Kind.READY, None
        if payload.startswith(b'{"id":2,"subscribe":'):
            if b'"was_recovering":true' in payload and b'"recovered":true' not in payload:
                raise Refused(payload.decode())
            return Kind.ANSWER, None
        if payload.startswith(b'{"id":3,"publish":'):
            return Kind.NOISE, None
        raise Refused(payload.decode())

    def join(self, user: User) -> bytes:
        return b'{"id":2,"subscribe":{"channel":"thread:%s","recoverable":true}}' % user.thread.encode()

    def typing(self, user: User, typing: bool) -> bytes:
        return b'{"id":3,"publish":{"channel":"thread:%s","data":{"typing":%s}}}' % (
            user.thread.encode(),
            b"true" if typing else b"false",
        )

    def presence(self, user: User, status: str) -> bytes:
        return b'{"id":3,"publish":{"channel":"presence:%s","data":{"status":"%s"}}}' % (
            user.group.encode(),
            status.encode(),
        )

    def recovery(self, user: User, position: Position) -> bytes | None:
        ((channel, offset),) = position.offsets.items()
        return (
            b'{"id":2,"subscribe":{"channel":"%s","recoverable":true,"recover":true,"epoch":"%s","offset":%s}}'
            % (channel.encode(), position.session.encode(), offset.encode())
        )

    def position(self, user: User, seen: Seen) -> Position:
        epoch = self._EPOCH.search(seen.answer)
        offset = self._OFFSET.findall(seen.message)[-1]
        return Position(epoch[1].decode() if epoch else "", {f"thread:{user.thread}": offset.decode()})


class PlainChannels(Wire):
    def path(self, user: User, position: Position | None) -> str:
        return "/ws/"

    def receive(self, payload: bytes, user: User, position: Position | None) -> tuple[Kind, bytes | None]:
        if payload.startswith(b'{"event": "thread:'):
            return Kind.EVENT, None
        match json.loads(payload)["event"]:
            case "ready":
                return Kind.READY, None
            case "joined":
                return Kind.ANSWER, None
        raise Refused(payload.decode())

    def join(self, user: User) -> bytes:
        return b'{"event": "join", "thread_id": "%s"}' % user.thread.encode()

    def typing(self, user: User, typing: bool) -> bytes:
        return b'{"event": "typing", "thread_id": "%s", "typing": %s}' % (
            user.thread.encode(),
            b"true" if typing else b"false",
        )


# --- Counted messages -------------------------------------------------------------------------------

MESSAGE = re.compile(rb'"seq": ?"(\d+)", ?"sent": ?"(\d+)"')
_BODY = "x" * 44


def stamp(nanoseconds: int) -> bytes:
    """Return the time of an event as its data spells it, always in as many digits."""
    return b"%020d" % nanoseconds


UNSTAMPED = stamp(0)


def message(thread: str, sequence: int) -> dict[str, Any]:
    """Return the data of one event: some 140 bytes of JSON, so some 170 as a frame of any of the systems."""
    return {
        "thread_id": thread,
        "message_id": str(sequence),
        "seq": f"{sequence:07d}",
        "sent": UNSTAMPED.decode(),
        "body": _BODY,
    }


def mark(sequence: int) -> tuple[bytes, ...]:
    """Return the bytes that identify the frame of this message."""
    return b'"seq":"%07d"' % sequence, b'"seq": "%07d"' % sequence
