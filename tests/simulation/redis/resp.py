"""RESP 2 and 3: replies as bytes, and bytes as commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


class Status(bytes):
    """A reply that says how it went."""


class Refused(Exception):
    """An error reply."""


class Pairs(dict[Any, Any]):
    """A mapping that is a list of pairs to who speaks RESP 2."""


class Push(list[Any]):
    """Sent without being asked for."""


OK = Status(b"OK")


def encode(value: Any, protocol: int) -> bytes:
    """A reply as bytes (RESP 2 or 3)."""
    match value:
        case Status():
            return b"+%b\r\n" % value
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case int():
            return b":%d\r\n" % value
        case None:
            return b"_\r\n" if protocol == 3 else b"$-1\r\n"
        case float():
            text = number_text(value)
            return b",%b\r\n" % text if protocol == 3 else encode(text, protocol)
        case Refused():
            return b"-%b\r\n" % str(value).encode()
        case Push():
            return (b">%d\r\n" if protocol == 3 else b"*%d\r\n") % len(value) + _all(value, protocol)
        case dict() if protocol == 3:
            return b"%%%d\r\n" % len(value) + _all(
                [part for pair in value.items() for part in pair], protocol
            )
        case Pairs():
            return encode([list(pair) for pair in value.items()], protocol)
        case dict():
            return encode([part for pair in value.items() for part in pair], protocol)
        case list() | tuple():
            return b"*%d\r\n" % len(value) + _all(value, protocol)
    raise TypeError(value)


def _all(values: Sequence[Any], protocol: int) -> bytes:
    return b"".join([encode(value, protocol) for value in values])


def number_text(value: float) -> bytes:
    return b"%d" % value if value == int(value) else repr(value).encode()


class Parser:
    """Bytes as commands."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> Iterator[list[bytes]]:
        self._data += data
        while self._data and (command := self._next()) is not None:
            yield command

    def _next(self) -> list[bytes] | None:
        data = self._data
        end = data.find(b"\r\n")
        if end < 0:
            return None
        if data[:1] != b"*":
            self._data = data[end + 2 :]
            return data[:end].split()
        start, arguments = end + 2, []
        for _ in range(int(data[1:end])):
            end = data.find(b"\r\n", start)
            if end < 0:
                return None
            length = int(data[start + 1 : end])
            start = end + 2
            if len(data) < start + length + 2:
                return None
            arguments.append(data[start : start + length])
            start += length + 2
        self._data = data[start:]
        return arguments
