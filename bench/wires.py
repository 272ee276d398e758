"""The protocol of each system over a WebSocket: connecting, joining, typing, reconnecting."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
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


@dataclass(frozen=True, slots=True)
class Position:
    """The state of a client that reconnects: the session's id and the last offset it received."""

    session: str
    offset: str


class Refused(Exception):
    """The server refused a client or its request."""


class Wire(ABC):
    """A protocol that the load generator speaks. It has no state: one object serves all connections."""

    pings: tuple[bytes, ...] = (b"\x89\x00", b"\x89\x04")
    """Bytes that every ping contains: received bytes are parsed at once only if they contain one of these."""

    @abstractmethod
    def path(self, user: User, position: Position | None) -> str: ...

    def headers(self, user: User) -> str:
        return f"Authorization: Bearer {user.token}\r\n"

    @abstractmethod
    def receive(self, payload: bytes, user: User, position: Position | None) -> tuple[Kind, bytes | None]:
        """Return the kind of a text frame, and the answer to send, if any. Raises `Refused`."""

    @abstractmethod
    def join(self, user: User) -> bytes: ...

    @abstractmethod
    def typing(self, user: User, typing: bool) -> bytes: ...

    def heartbeat(self) -> bytes | None:
        """Return the frame that an idle client sends from time to time, if any."""
        return None

    def recovery(self, user: User, position: Position) -> bytes | None:
        """Return the request of a reconnected client for missed messages; None if the handshake contains it."""
        return None

    def position(self, hello: bytes, last_event: bytes) -> Position:
        """Return the position of a client, from the ready frame and the last event it received."""
        raise NotImplementedError


class Ours(Wire):
    def path(self, user: User, position: Position | None) -> str:
        return "/portal/" if position is None else "/portal/?resume=1"

    def receive(self, payload: bytes, user: User, position: Position | None) -> tuple[Kind, bytes | None]:
        if payload.startswith(b'{"event":"thread:'):
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

    def heartbeat(self) -> bytes | None:
        return b'{"event":"heartbeat"}'

    def recovery(self, user: User, position: Position) -> bytes | None:
        rooms = {f"thread:{user.thread}": position.offset}
        return json.dumps({"event": "resume", "data": {"rooms": rooms}, "id": 2}).encode()

    def position(self, hello: bytes, last_event: bytes) -> Position:
        return Position("", str(json.loads(last_event)["offset"]))


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
                    auth |= {"pid": position.session, "offset": position.offset}
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

    def position(self, hello: bytes, last_event: bytes) -> Position:
        return Position(json.loads(hello[2:])["pid"], json.loads(last_event[2:])[-1])


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
TYPING = re.compile(rb'"user_id": ?"([^"]+)".*"typing": ?(true|false)')
_BODY = "x" * 44


def message(thread: str, sequence: int, sent: int = 0) -> dict[str, Any]:
    """Return the data of one event: some 140 bytes of JSON, so some 170 as a frame of any of the systems."""
    return {
        "thread_id": thread,
        "message_id": str(sequence),
        "seq": f"{sequence:07d}",
        "sent": f"{sent:020d}",
        "body": _BODY,
    }


def mark(sequence: int) -> tuple[bytes, ...]:
    """Return the bytes that identify the frame of this message."""
    return b'"seq":"%07d"' % sequence, b'"seq": "%07d"' % sequence
