"""WebSocket frames (RFC 6455), as far as a load generator needs them."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum


class Opcode(IntEnum):
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


_FIN = 0x80
_MASKED = 0x80
_NO_MASK = bytes(4)
"""A client must mask; this key leaves the payload unchanged, so that only the server does the work."""


def client_frame(payload: bytes, opcode: Opcode = Opcode.TEXT) -> bytes:
    """Return one frame of a client."""
    size = len(payload)
    if size < 126:
        head = bytes((_FIN | opcode, _MASKED | size))
    else:
        head = bytes((_FIN | opcode, _MASKED | 126)) + size.to_bytes(2, "big")
    return head + _NO_MASK + payload


def server_frame(payload: bytes) -> bytes:
    """Return one text frame of a server."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | Opcode.TEXT, size)) + payload
    return bytes((_FIN | Opcode.TEXT, 126)) + size.to_bytes(2, "big") + payload


def parse(buffer: bytes, masked: bool = False) -> Iterator[tuple[int, bytes, int]]:
    """Yield opcode, payload and end of every complete frame. (The mask of `client_frame` changes nothing.)"""
    position, available = 0, len(buffer)
    mask = 4 if masked else 0
    while available - position >= 2:
        size = buffer[position + 1] & 0x7F
        start = position + 2
        if size == 126:
            if available < start + 2:
                return
            size = (buffer[start] << 8) | buffer[start + 1]
            start += 2
        elif size == 127:
            if available < start + 8:
                return
            size = int.from_bytes(buffer[start : start + 8], "big")
            start += 8
        start += mask
        end = start + size
        if end > available:
            return
        yield buffer[position] & 0x0F, buffer[start:end], end
        position = end
