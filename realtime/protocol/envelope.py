"""Frames: one JSON object each, `{"event", "data", "id"?}` from clients, with `room` and `offset` to them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from realtime.protocol.nesting import TooDeep, check_nesting
from realtime.protocol.payloads import readable
from realtime.protocol.surrogates import whole, whole_json
from realtime.protocol.values import plain

FrameId = Annotated[str, Meta(max_length=64)] | Annotated[int, Meta(gt=-(2**53), lt=2**53)]


class ErrorCode(StrEnum):
    """The codes of `error` frames."""

    INVALID_JSON = "invalid_json"
    INVALID_ENVELOPE = "invalid_envelope"
    UNKNOWN_EVENT = "unknown_event"
    INVALID_PAYLOAD = "invalid_payload"
    FORBIDDEN = "forbidden"
    NOT_IN_ROOM = "not_in_room"
    RATE_LIMITED = "rate_limited"
    LIMIT_EXCEEDED = "limit_exceeded"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class EventError(Exception):
    """Raise this in a handler to refuse a client's frame; the connection stays open.

        raise EventError(ErrorCode.FORBIDDEN, "the desk is closed", opens_at="08:00")

    Args:
        code: the code of the `error` frame.
        message: a text for developers.
        data: more fields for the frame, as JSON.
    """

    def __init__(self, code: ErrorCode, message: str, **data: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data: dict[str, Any] = plain(data)


class InvalidFrame(EventError):
    """A frame is not a valid envelope. `id` is its id, if that could be read."""

    def __init__(self, code: ErrorCode, message: str, id: str | int | None = None) -> None:
        super().__init__(code, message)
        self.id = id


class Envelope(msgspec.Struct, frozen=True):
    """A client's frame. `data` is still JSON; the event's payload type decodes it."""

    event: str
    data: msgspec.Raw = msgspec.Raw(b"")
    id: FrameId | None = None


class _OnlyId(msgspec.Struct):
    id: FrameId | None = None


_envelope = msgspec.json.Decoder(Envelope)
_only_id = msgspec.json.Decoder(_OnlyId)
_encoder = msgspec.json.Encoder(enc_hook=plain)  # `Id` is a subclass of str


def decode(text: str) -> Envelope:
    """Parse one client frame. Raises `InvalidFrame`."""
    text = whole_json(text)
    try:
        check_nesting(text)
        frame = _envelope.decode(text)
    except TooDeep as error:
        raise InvalidFrame(ErrorCode.INVALID_JSON, str(error)) from error
    except msgspec.ValidationError as error:
        raise InvalidFrame(ErrorCode.INVALID_ENVELOPE, readable(str(error)), _id_of(text)) from error
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise InvalidFrame(ErrorCode.INVALID_JSON, "expected one JSON object") from error
    data = bytes(frame.data)
    if data in {b"", b"null"}:
        return msgspec.structs.replace(frame, data=msgspec.Raw(b""))
    if not data.startswith(b"{"):
        raise InvalidFrame(ErrorCode.INVALID_ENVELOPE, "data: expected object", frame.id)
    return frame


def encode(
    event: str,
    data: Mapping[str, Any] | msgspec.Raw,
    *,
    id: str | int | None = None,
    room: str | None = None,
    offset: str | None = None,
) -> str:
    """One server frame."""
    frame: dict[str, Any] = {"event": event}
    if id is not None:
        frame["id"] = id
    if room is not None:
        frame["room"] = room
    if offset is not None:
        frame["offset"] = offset
    frame["data"] = data
    return _encode(frame).decode()


@lru_cache(maxsize=4096)
def frame_head(event: str, room: str) -> bytes:
    """The beginning of a room's frame, up to the offset, which Redis assigns."""
    return _encoder.encode({"event": event, "room": room, "offset": ""})[:-2]


def frame_tail(data: Mapping[str, Any] | msgspec.Raw) -> bytes:
    """The rest of a room's frame, after the offset."""
    return b'","data":' + _encode(data) + b"}"


def _encode(value: object) -> bytes:
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(whole(plain(value)))


def iso(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _id_of(text: str) -> str | int | None:
    try:
        return _only_id.decode(text).id
    except msgspec.DecodeError:
        return None
