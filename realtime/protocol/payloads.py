"""What the `data` of an event may be: typed, frozen, validated at the edge."""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import Any, TypeVar, get_type_hints

import msgspec

from realtime.protocol.namespaces import ID_PATTERN

DEPTH = 100
"""So many objects and arrays of a value that is passed on unread may be inside one another."""
_LARGEST = int(sys.float_info.max)

_ID = re.compile(ID_PATTERN, re.ASCII)


class Id(str):
    """The id of a user, thread, group, …: 1–64 characters out of `A-Z a-z 0-9 _ -`.

    A whole number is accepted wherever an id is and becomes a string.
    """

    __slots__ = ()

    @staticmethod
    def parse(value: object) -> str:
        """The id that `value` is. Raises `ValueError` when it is none."""
        if not isinstance(value, str):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"expected an id (string or whole number), got {type(value).__name__}")
            value = str(value)
        if not _ID.fullmatch(value):
            raise ValueError("expected an id of 1-64 characters out of A-Z a-z 0-9 _ -")
        return value


class _Number(Id):
    """An id that came as a whole number."""

    __slots__ = ()


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every event's `data`. Fields not declared pass through untouched (server events) or are ignored."""


class Empty(Payload, frozen=True):
    """No data."""


class InvalidPayload(ValueError):
    """`data` does not fit its event; the text names the field, what was expected and what it got."""


P = TypeVar("P", bound=Payload)


def _hook(kind: type, value: object) -> object:
    if kind is not Id:
        raise NotImplementedError(f"no decoder for {kind}")
    parsed = Id.parse(value)
    return Id(parsed) if parsed is value else _Number(parsed)


def parse_payload(kind: type[P], data: bytes | msgspec.Raw) -> P:
    """Decode `data` (a JSON object, or nothing) as `kind`. Raises `InvalidPayload`."""
    try:
        payload: P = _decoder(kind).decode(data or b"{}")
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidPayload(_readable(str(error))) from error
    for name in _unread_fields(kind):
        _check_unread(name, getattr(payload, name))
    return payload


def _check_unread(name: str, raw: object) -> None:
    """Raises `InvalidPayload` unless every receiver can read what is passed on: as deep, and in numbers as large."""
    if not isinstance(raw, msgspec.Raw) or not raw:
        return
    try:
        _check_value(msgspec.json.decode(raw))
    except RecursionError as error:
        raise InvalidPayload(f"{name}: {_TOO_DEEP}") from error
    except ValueError as error:  # and msgspec's errors, which are
        raise InvalidPayload(f"{name}: {_readable(str(error))}") from error


def _check_value(value: object, depth: int = 0) -> None:
    if isinstance(value, list | dict):
        if depth >= DEPTH:
            raise ValueError(_TOO_DEEP)
        for item in value.values() if isinstance(value, dict) else value:
            _check_value(item, depth + 1)
    elif isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        raise ValueError("number out of range")


_TOO_DEEP = f"nested more than {DEPTH} levels deep"


@cache
def _decoder(kind: type[Payload]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=_hook)


def merge(payload: Payload, data: bytes | msgspec.Raw) -> msgspec.Raw | dict[str, Any]:
    """`data` as it came, byte for byte, except that ids are strings now."""
    numbers = [name for name in _id_fields(type(payload)) if type(getattr(payload, name)) is _Number]
    if not numbers:
        return msgspec.Raw(data or b"{}")
    raw: dict[str, Any] = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    return raw | {name: getattr(payload, name) for name in numbers}


@cache
def _unread_fields(kind: type[Payload]) -> tuple[str, ...]:
    return tuple(name for name, hint in get_type_hints(kind).items() if hint is msgspec.Raw)


@cache
def _id_fields(kind: type[Payload]) -> tuple[str, ...]:
    hints = get_type_hints(kind)
    return tuple(name for name, hint in hints.items() if hint is Id or Id in getattr(hint, "__args__", ()))


def _readable(message: str) -> str:
    """msgspec's "Expected `str`, got `int` - at `$.name`" as "name: expected str, got int"."""
    text, _, path = message.replace("`", "").partition(" - at ")
    field = path.removeprefix("$").removeprefix(".")
    if text.startswith("Object missing required field "):
        missing = text.removeprefix("Object missing required field ")
        return f"{f'{field}.' if field else ''}{missing}: required"
    text = text[:1].lower() + text[1:]
    return f"{field}: {text}" if field else text
