"""The `data` of events: typed, frozen values, validated where they enter."""

from __future__ import annotations

import re
from functools import cache
from math import isinf
from typing import Any, TypeVar, get_type_hints

import msgspec

from realtime.protocol.ids import ID_ALPHABET, MAX_LENGTH, composed, is_group, is_id
from realtime.protocol.nesting import TooDeep, check_nesting, without_strings
from realtime.protocol.values import DEPTH

TOO_DEEP = f"nested more than {DEPTH} levels deep"


class Id(str):
    """The id of a user, thread, …: 1-64 characters out of `A-Z a-z 0-9 _ - . @ | + ~`.

    A whole number is accepted wherever an id is and becomes a string.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> str:
        """The id that `value` is. Raises `ValueError` when it is none."""
        text = _text(value)
        if not is_id(text):
            raise ValueError(f"expected an id of 1-{MAX_LENGTH} characters out of {ID_ALPHABET}")
        return text


class PresenceGroup(Id):
    """The name of a presence group: like an id, but with spaces, and letters and digits of any script.

    A name is composed (Unicode's normalization form C) before it is compared with another.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> str:
        """The name that `value` is, composed. Raises `ValueError` when it is none."""
        text = composed(_text(value))
        if not is_group(text):
            raise ValueError(
                f"expected a group name of 1-{MAX_LENGTH} letters, digits, spaces and characters out of {ID_ALPHABET}"
            )
        return text


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected an id (string or whole number), got {type(value).__name__}")
    return str(value)


class Respelled:
    """Marks an id that came as a whole number, or not composed."""

    __slots__ = ()


@cache
def _respelled(kind: type[Id]) -> type[Id]:
    return type(kind.__name__, (kind, Respelled), {"__slots__": ()})


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every event's `data`.

    Fields that are not declared pass through unchanged in server events, and are ignored in client events. Example:

        class TicketEscalated(Payload, frozen=True, kw_only=True):
            ticket_id: Id
            group: PresenceGroup = PresenceGroup("attendants")
    """


class Empty(Payload, frozen=True):
    """No data."""


class InvalidPayload(ValueError):
    """`data` does not fit its event; the text names the field, what was expected and what came."""


P = TypeVar("P", bound=Payload)


def decode_id(kind: type, value: object) -> object:
    """msgspec's `dec_hook` for fields that are ids. Raises `ValueError` for a value that is none."""
    if kind is Id and type(value) is str and is_id(value):  # as nearly all are: `parse` takes longer
        return Id(value)
    if kind is object:
        return value
    if not issubclass(kind, Id):
        raise NotImplementedError(f"no decoder for {kind}")
    parsed = kind.parse(value)
    return (kind if parsed == value else _respelled(kind))(parsed)


def parse_payload(kind: type[P], data: bytes | msgspec.Raw) -> P:
    """Decode `data` (a JSON object, or nothing) that came from outside as `kind`. Raises `InvalidPayload`."""
    payload = decode_payload(kind, data)
    for name in _unread_fields(kind):
        _check_unread(name, getattr(payload, name))
    return payload


def decode_payload(kind: type[P], data: bytes | msgspec.Raw) -> P:
    """`parse_payload` for data whose unread values are known to be good. Raises `InvalidPayload`."""
    try:
        payload: P = decoder(kind).decode(data or b"{}")
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidPayload(readable(str(error))) from error
    return payload


def _check_unread(name: str, raw: object) -> None:
    """Raises `InvalidPayload` when some receivers could not read the value: it is too deep, or a number too large."""
    if not isinstance(raw, msgspec.Raw) or not raw:
        return
    text = bytes(raw).decode()
    try:
        check_nesting(text, DEPTH)
    except TooDeep as error:
        raise InvalidPayload(f"{name}: {error}") from error
    if any(map(_is_large, _numbers(text))):
        raise InvalidPayload(f"{name}: number out of range")


_MANY_DIGITS = re.compile(r"[0-9](?<![0-9]{2})[0-9]{199}")
_LARGE_EXPONENT = re.compile(r"[eE]\+?[0-9]{3}")
_NUMBER = re.compile(rb"-?[0-9][0-9.eE+-]{4,}+")


def _numbers(text: str) -> list[bytes]:
    """The numbers in a JSON document, but for short ones; none if all are below 1e300."""
    if not (_MANY_DIGITS.search(text) or _LARGE_EXPONENT.search(text)):
        return []
    return _NUMBER.findall(without_strings(text))


def _is_large(number: bytes) -> bool:
    return isinf(float(number))  # (msgspec would take 9 µs for a 1e300)


@cache
def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """What decodes the JSON of a type. Raises `TypeError` for a type that cannot be decoded."""
    return msgspec.json.Decoder(kind, dec_hook=decode_id)


@cache
def _unread_fields(kind: type[Payload]) -> tuple[str, ...]:
    return tuple(name for name, hint in get_type_hints(kind).items() if hint is msgspec.Raw)


def readable(message: str) -> str:
    """What msgspec says of JSON, "Expected `str`, got `int` - at `$.name`", as "name: expected str, got int"."""
    text, _, path = message.replace("`", "").partition(" - at ")
    field = path.removeprefix("$").removeprefix(".")
    if text.startswith("Object missing required field "):
        missing = text.removeprefix("Object missing required field ")
        return f"{f'{field}.' if field else ''}{missing}: required"
    text = text[:1].lower() + text[1:]
    return f"{field}: {text}" if field else text
