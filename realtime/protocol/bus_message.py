"""Bus messages: whether a message is valid, and which rooms it goes to, decided without I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from realtime.conf import cached, conf
from realtime.protocol.catalogue import ServerEvent, catalogue
from realtime.protocol.declarations import check_routes
from realtime.protocol.envelope import frame_head, frame_tail
from realtime.protocol.ids import composed
from realtime.protocol.namespaces import namespaces
from realtime.protocol.nesting import TooDeep, check_nesting
from realtime.protocol.payloads import InvalidPayload, Payload, parse_payload
from realtime.protocol.publication import Draft, Target
from realtime.protocol.respelling import merge
from realtime.protocol.rooms import group_name, is_room, thread_room, user_room
from realtime.protocol.surrogates import whole_json

MOST_TARGETS = 1000
"""Rooms of one message, each namespace's counted: Redis writes the whole message for each of them, at once."""
MOST_TEXT = 128
"""Characters of what a publication has besides its frame: its length has six digits there (`append.lua`)."""

MessageId = (
    Annotated[str, Meta(min_length=1, max_length=MOST_TEXT)] | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
)
"""A whole number is the same id as its digits."""


class InvalidMessage(ValueError):
    """A message that is not delivered. `code` is one word for counters, the text says what was wrong."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self._detail = detail

    def untraced(self) -> InvalidMessage:
        """A copy that was never raised. An error that was raised keeps all frames that it passed, and so the message.

        A frame that refers to the error in turn would make a cycle, which stays until the garbage collector runs.
        """
        return type(self)(self.code, self._detail)


class BusMessageJSON(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of a bus message, as a backbone writes it."""

    event: str
    data: msgspec.Raw = msgspec.Raw(b"")
    id: MessageId | None = None
    rooms: Annotated[list[str], Meta(min_length=1, max_length=1000)] | None = None
    namespaces: Annotated[list[str], Meta(min_length=1)] | None = None
    exclude: Annotated[str, Meta(max_length=MOST_TEXT)] | None = msgspec.field(default=None, name="except")
    traceparent: msgspec.Raw = msgspec.Raw(b"")
    """Ignored unless it is a short text, and not read before that is known."""


class BusMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A valid bus message and the rooms that it goes to; a control event goes to none."""

    event: str
    payload: Payload
    tail: bytes = b""
    """The frame from behind its offset (`realtime.protocol.envelope.frame_tail`), the same for all clients."""
    targets: tuple[Target, ...] = ()
    id: str | None = None
    exclude: str | None = None
    traceparent: str | None = None
    """The trace that it is part of (`realtime.telemetry.tracing`)."""

    def draft(self, *, source: str = "", entry: str = "", traceparent: str = "") -> Draft:
        """What is appended to its rooms, once for all the clients."""
        return Draft(
            rooms=[_place(self.event, target) for target in self.targets],
            tail=self.tail,
            source=source,
            entry=entry,
            id=self.id or "",
            exclude=self.exclude or "",
            traceparent=traceparent,
        )


@lru_cache(maxsize=4096)
def _place(event: str, target: Target) -> tuple[str, bytes]:
    """The group of a target, and the frame before its offset."""
    namespace, room = target
    return group_name(namespace, room), frame_head(event, room)


_SUBJECTS: dict[str, Callable[[str], str]] = {
    "user_id": user_room,
    "thread_id": thread_room,
    "room": str,
    "jti": "token:{}".format,
}
"""Fields of a payload that name what it is about."""


def subjects(payload: Payload) -> set[str]:
    """The user, room and token that a message is about; users and threads by the names of their rooms."""
    return {
        spell(value)
        for name, spell in _SUBJECTS.items()
        if (value := getattr(payload, name, None)) is not None
    }


_decoder = msgspec.json.Decoder(BusMessageJSON)
_IN_PHP = "; in PHP an empty array is written as []: send (object)[], or use JSON_FORCE_OBJECT"


def parse(raw: bytes) -> BusMessage:
    """Validate one message from the bus. Raises `InvalidMessage`."""
    if len(raw) > (limit := conf().limits.bus_bytes) > 0:
        raise InvalidMessage("too_large", f"{len(raw)} bytes, at most {limit}")
    try:
        # Strict UTF-8 first: JSON that passes through untouched must not break a browser's text frame.
        text = whole_json(raw.decode())
        check_nesting(text)
        message = _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise InvalidMessage("invalid_message", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, TooDeep) as error:
        raise InvalidMessage("invalid_json", str(error)) from error
    data = bytes(message.data)
    if data == b"null":
        data = b""
    id = None if message.id is None else str(message.id)
    events = catalogue()
    if server := events.server.get(message.event):
        if not server.bus:
            raise InvalidMessage("not_publishable", f"{message.event} is sent by the socket server itself")
        payload = _payload(server.payload, message.event, data)
        return BusMessage(
            event=message.event,
            payload=payload,
            tail=_tail(message.event, payload, data),
            targets=_targets(server, payload, message),
            id=id,
            exclude=message.exclude,
            traceparent=_traceparent(message.traceparent),
        )
    if control := events.control.get(message.event):
        payload = _payload(control.payload, message.event, data)
        return BusMessage(event=message.event, payload=payload, id=id)
    if message.event in events.client:
        raise InvalidMessage("client_event", f"{message.event} goes from clients to the server only")
    raise InvalidMessage("unknown_event", f"{message.event[:64]!r} is not in the catalogue")


def _traceparent(raw: msgspec.Raw) -> str | None:
    text = bytes(raw)
    if not text.startswith(b'"') or len(text) > MOST_TEXT + 2:
        return None
    return msgspec.json.decode(text, type=str)


def _payload(kind: type[Payload], event: str, data: bytes) -> Payload:
    if data.startswith(b"["):
        raise InvalidMessage("invalid_payload", f"{event}: data: expected an object, got an array{_IN_PHP}")
    try:
        return parse_payload(kind, data)
    except InvalidPayload as error:
        raise InvalidMessage("invalid_payload", f"{event}: {error}") from error


def _tail(event: str, payload: Payload, data: bytes) -> bytes:
    try:
        return frame_tail(merge(payload, data))
    except InvalidPayload as error:
        raise InvalidMessage("invalid_payload", f"{event}: {error}") from error


def _targets(event: ServerEvent, payload: Payload, message: BusMessageJSON) -> tuple[Target, ...]:
    """Every (namespace, room) once. `rooms` replaces the event's routing; `namespaces` only ever narrows."""
    asked = None if message.namespaces is None else frozenset(message.namespaces)
    if asked is not None and not asked <= namespaces().keys():
        raise InvalidMessage(
            "invalid_message", f"namespaces: some of {sorted(namespaces())}, got {sorted(asked)}"
        )
    audience = event.default_namespaces if asked is None else event.namespaces & asked
    routes: Sequence[Any] = (
        message.rooms if message.rooms is not None else event.rooms(payload) if event.rooms else ()
    )
    check_routes(event.name, routes)
    targets: dict[Target, None] = {}
    for route in routes:
        names, room = (audience, route) if isinstance(route, str) else route
        if asked is not None:
            names = names & asked
        targets.update(_in_each(names & event.namespaces, room))
    if not targets:
        raise InvalidMessage("no_audience", _nowhere(event, asked, message.rooms))
    if len(targets) > MOST_TARGETS:
        raise InvalidMessage(
            "too_many_rooms",
            f"{len(targets)} rooms in all namespaces, at most {MOST_TARGETS}: send several messages",
        )
    return tuple(targets)


def _nowhere(event: ServerEvent, asked: frozenset[str] | None, rooms: Sequence[str] | None) -> str:
    if asked is None or event.namespaces & asked:
        return f"{event.name}: no namespace that it reaches has {'the room ' + rooms[0] if rooms else 'its rooms'}"
    return f"{event.name} never reaches {', '.join(sorted(asked))}"


@cached(4096)
def _in_each(names: frozenset[str], room: str) -> Mapping[Target, None]:
    """The room in each of these namespaces that has rooms of its kind."""
    room = composed(room)
    if not is_room(room):
        raise InvalidMessage("invalid_message", f"rooms: {room[:80]!r} is not a room")
    return dict.fromkeys((name, room) for name in sorted(names) if namespaces()[name].has_room(room))
