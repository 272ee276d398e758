"""Python values as JSON: what a backbone may publish, and what a handler may return."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from types import NoneType
from typing import Any, Final
from uuid import UUID

import msgspec
from django.utils.functional import LazyObject, Promise

from realtime.protocol.surrogates import whole

DEPTH = 100
"""The levels of nesting allowed in a value."""
_NUMBER_BITS = 1024
"""A receiver that reads numbers as doubles, as JavaScript does, reads a longer whole number as infinity."""
_SMALL = 2**64
_PATH_LENGTH = 200

Converter = Callable[[Any, int], Any]


class NotJSON(ValueError):
    """JSON has no form for a value. The text says where the value is and of which type; it never quotes the value."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def below(self, name: object) -> NotJSON:
        """This error with a key or index added in front of its path."""
        if isinstance(name, str):
            text = str.__str__(name)[:64]
            step = f".{text}" if text.isidentifier() else f"[{text!r}]"
        else:
            is_short = isinstance(name, int) and name.bit_length() <= 64
            step = f"[{name}]" if is_short else f"[{type(name).__name__}]"
        self.path = step + self.path
        return self

    def __str__(self) -> str:
        path = self.path.removeprefix(".")
        path = path if len(path) <= _PATH_LENGTH else f"{path[:_PATH_LENGTH]}…"
        return f"{path}: {self.reason}" if path else self.reason


def plain(value: Any, depth: int = 0) -> Any:
    """Convert a value to types that msgspec writes as JSON: objects, arrays, strings, finite numbers, dates, UUIDs.

    Instances of subclasses are converted like their base type (a `SafeString` to its text), an `Enum` to its value,
    lazy strings to their text, sets to arrays, `msgspec.Struct`s and dataclasses to objects. A key may be a string, a
    whole number, or any value that is a string in JSON (a UUID, a date).

        >>> plain({"due": datetime(2026, 3, 1), "tags": {"new"}})
        {'due': datetime.datetime(2026, 3, 1, 0, 0), 'tags': ['new']}

    Args:
        value: the value to convert.
        depth: the number of objects and arrays around it.

    Raises:
        NotJSON: for any other type, for NaN and Infinity, and for a value that is nested more than `DEPTH` levels deep
            or contains itself.
    """
    kind: type = type(value)
    if kind in _AS_IS or (kind is int and -_SMALL < value < _SMALL) or (kind is float and value - value == 0):
        return value
    if kind is dict:
        return _object(value, depth)
    if kind is list:
        return _array(value, depth)
    return _converter(kind)(value, depth)


def encode(value: Any) -> bytes:
    """The JSON of a value, in UTF-8. A lone surrogate becomes U+FFFD. Raises `NotJSON`."""
    made = plain(value)
    try:
        return _encoder.encode(made)
    except UnicodeEncodeError:
        return _encoder.encode(whole(made))


_encoder = msgspec.json.Encoder()
_AS_IS: Final = frozenset({str, bool, NoneType, datetime, date, time, timedelta, UUID, msgspec.Raw})
"""Types whose instances msgspec writes without a conversion."""


# --- Objects and arrays ------------------------------------------------------------------------------


def _object(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    if depth >= DEPTH:
        raise _too_deep()
    made: dict[str, Any] = {}
    for name, item in value.items():
        try:
            key = name if type(name) is str else _key(name)
            if key in made:
                raise NotJSON("two keys of this object become the same key in JSON")
            made[key] = item if type(item) in _AS_IS else plain(item, depth + 1)
        except NotJSON as error:
            raise error.below(name) from None
    return made


def _array(value: Iterable[Any], depth: int) -> list[Any]:
    if depth >= DEPTH:
        raise _too_deep()
    made: list[Any] = []
    for number, item in enumerate(value):
        try:
            made.append(item if type(item) in _AS_IS else plain(item, depth + 1))
        except NotJSON as error:
            raise error.below(number) from None
    return made


def _too_deep() -> NotJSON:
    return NotJSON(f"nested more than {DEPTH} levels deep, or it contains itself")


def _key(name: object) -> str:
    text = msgspec.to_builtins(plain(name))
    if type(text) is int:
        return str(text)
    if not isinstance(text, str):
        raise NotJSON(f"a key: expected a string or a whole number, got {type_name(type(name))}")
    return text


def _struct(value: msgspec.Struct, depth: int) -> Any:
    config = value.__struct_config__
    found = {
        field.encode_name: item
        for field in msgspec.structs.fields(value)
        if (item := getattr(value, field.name)) is not msgspec.UNSET
        and not (config.omit_defaults and not config.array_like and _is_default(field, item))
    }
    if config.tag is not None:
        found = {config.tag_field or "type": config.tag, **found}
    return _array(found.values(), depth) if config.array_like else _object(found, depth)


def _is_default(field: msgspec.structs.FieldInfo, value: object) -> bool:
    if field.default_factory is not msgspec.NODEFAULT:
        return not value and type(value) is field.default_factory
    return value is field.default


def _dataclass(value: Any, depth: int) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
    return _object({name: getattr(value, name) for name in names}, depth)


# --- Single values -----------------------------------------------------------------------------------


def _int(value: int, _: int) -> int:
    if value.bit_length() > _NUMBER_BITS:
        raise NotJSON(f"a whole number: expected at most {_NUMBER_BITS} bits, got {value.bit_length()}")
    return int.__int__(value)


def _float(value: float, _: int) -> float:
    if not math.isfinite(value):
        raise NotJSON("JSON has neither NaN nor Infinity")
    return float.__float__(value)


def _decimal(value: Decimal, _: int) -> str:
    if not value.is_finite():
        raise NotJSON("JSON has neither NaN nor Infinity")
    return str(value)


def _moment(value: datetime | date | time, _: int) -> str:
    text = value.isoformat()
    return f"{text.removesuffix('+00:00')}Z" if text.endswith("+00:00") else text


def _lazy(value: Any, depth: int) -> Any:
    if isinstance(value, LazyObject) and not isinstance(
        value, str
    ):  # its class is that of the wrapped object
        return _no_form(value, depth)
    return plain(str(value), depth)


def _no_form(value: object, _: int) -> Any:
    raise NotJSON(f"JSON has no form for {type_name(type(value))}")


def type_name(kind: Any) -> str:
    """The name of a type in an error's text."""
    if not isinstance(kind, type):
        return str(kind)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


_CONVERTERS: Final[tuple[tuple[type | tuple[type, ...], Converter], ...]] = (
    (Enum, lambda value, depth: plain(value.value, depth)),
    (str, lambda value, _: str.__str__(value)),
    (int, _int),
    (float, _float),
    (Decimal, _decimal),
    ((date, time), _moment),  # a datetime is a date
    (timedelta, lambda value, _: timedelta(value.days, value.seconds, value.microseconds)),
    (UUID, lambda value, _: str(value)),
    (Mapping, _object),
    ((list, tuple, set, frozenset), _array),
    (msgspec.Struct, _struct),
    ((Promise, LazyObject), _lazy),
)


@lru_cache(maxsize=1024)
def _converter(kind: type) -> Converter:
    """The conversion of values of exactly this type."""
    for base, convert in _CONVERTERS:
        if issubclass(kind, base):
            return convert
    return _dataclass if dataclasses.is_dataclass(kind) else _no_form
