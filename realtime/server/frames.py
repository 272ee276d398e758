"""WebSocket frames as bytes (RFC 6455 §5): their size, and the text of a short one."""

from __future__ import annotations

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # compiled where that is possible

PING_FRAME = b"\x89\x00"
"""A ping without payload (RFC 6455 §5.5.2), as a server sends it."""
CONTROL = 0x08
"""This bit of an opcode marks control frames."""

_RESERVED = frozenset({*range(3, 8), *range(11, 16)})
"""Opcodes that no frame may have (RFC 6455 §5.2)."""
_SHORT = 126
"""A payload below this length has its length in the second byte."""


def frame_size(data: bytes | bytearray, most: int) -> int:
    """The size of the frame that `data` begins with, or the least size it can have; all of `data` if it is wrong.

    The parser then finds what is wrong: a reserved opcode, no mask, or more than `most` bytes of payload.
    """
    if len(data) < 2:
        return 2
    if not data[1] & 0x80 or data[0] & 0x0F in _RESERVED:
        return len(data)
    length, head = data[1] & 0x7F, 6
    if length == 126:
        length, head = int.from_bytes(data[2:4]), 8
    elif length == 127:
        length, head = int.from_bytes(data[2:10]), 14
    if len(data) < head:
        return head
    return len(data) if length > most else head + length


def short_text(frame: bytes, most: int) -> str | None:
    """The text of a short text frame in one piece, as nearly all frames of clients are; None for any other frame.

    Also None when the payload is longer than `most` bytes or is no UTF-8: the parser then finds what is wrong.
    """
    if frame[0] != 0x81 or not 0x80 <= frame[1] < 0x80 + _SHORT or len(frame) - 6 > most:
        return None
    try:
        return apply_mask(frame[6:], frame[2:6]).decode()
    except UnicodeDecodeError:
        return None


def is_short_pong(frame: bytes) -> bool:
    """Whether this is a whole pong (RFC 6455 §5.5.3), the answer to a ping of ours: nothing has to be done about it."""
    return frame[0] == 0x8A and 0x80 <= frame[1] < 0x80 + _SHORT and len(frame) == frame[1] - 0x80 + 6
