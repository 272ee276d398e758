"""The head of an ordinary handshake, read in one go.

Nearly every client sends the same few headers, whole, in one packet. Such a head is read here, for a fraction of what a
general parser costs. It is a small part of HTTP: whatever else may be meant by a head, in any way, is left unread to
the general parser. A test compares what both make of the same bytes.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha1
from typing import Final, NamedTuple

Headers = Sequence[tuple[bytes, bytes]]
"""Names in small letters, and values without spaces around them."""

MOST_BYTES: Final = 16 * 1024
MOST_LINES: Final = 50
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455 §1.3"""
_HEAD = re.compile(
    rb"GET (?P<target>/[\w/-]{0,100}(?:\?resume=1)?) HTTP/1\.1\r\n"
    rb"(?P<lines>(?:[\w-]{1,40}: [!-~](?:[ -~]*[!-~])?\r\n){4,%d})\r\n" % (MOST_LINES - 1)
)
_LINE = re.compile(rb"([\w-]+): (.+)\r\n")
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_SUBPROTOCOLS = re.compile(rb"[\w.-]+(?:, ?[\w.-]+){0,9}")
_CONNECTION = frozenset({b"upgrade", b"keep-alive, upgrade"})
_LEFT_TO_THE_PARSER = frozenset({b"content-length", b"transfer-encoding", b"expect", b"proxy-connection"})
"""Headers that change how a request is read."""


class Handshake(NamedTuple):
    """A request for a WebSocket that may be accepted (RFC 6455 §4.2.1)."""

    target: bytes
    """Path and query."""
    headers: Headers
    accepts: bytes
    """The value of Sec-WebSocket-Accept."""


def read_handshake(data: bytes) -> Handshake | None:
    """The handshake that these bytes are, no more and no less; None if they have to be parsed."""
    if len(data) > MOST_BYTES or (head := _HEAD.fullmatch(data)) is None:
        return None
    headers = [(name.lower(), value) for name, value in _LINE.findall(head["lines"])]
    by_name = dict(headers)
    if len(by_name) < len(headers) or not _is_ordinary(by_name):
        return None
    return Handshake(head["target"], headers, accept_key(by_name[b"sec-websocket-key"]))


def accept_key(key: bytes) -> bytes:
    """The answer to a key (RFC 6455 §4.2.2)."""
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())


def _is_ordinary(headers: dict[bytes, bytes]) -> bool:
    return (
        headers.get(b"upgrade", b"").lower() == b"websocket"
        and headers.get(b"connection", b"").lower() in _CONNECTION
        and headers.get(b"sec-websocket-version") == b"13"
        and b"host" in headers
        and _KEY.fullmatch(headers.get(b"sec-websocket-key", b"")) is not None
        and _SUBPROTOCOLS.fullmatch(headers.get(b"sec-websocket-protocol", b"-")) is not None
        and _LEFT_TO_THE_PARSER.isdisjoint(headers)
    )
