"""The reasons for the end of a connection: the close codes of the wire protocol."""

from __future__ import annotations

from enum import IntEnum, StrEnum

NO_CODE = 1005
"""The close frame had no code (RFC 6455 §7.4.1)."""
LOST = 1006
"""There was no close frame."""


class By(StrEnum):
    """The side that ended a connection."""

    CLIENT = "client"
    SERVER = "server"
    LOST = "lost"
    """Neither side: the network broke, or the peer vanished."""


class CloseCode(IntEnum):
    """Codes this server closes with. What a client does next is part of the protocol (docs/protocol.md)."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    INVALID_UTF8 = 1007
    FRAME_TOO_LARGE = 1009
    INTERNAL_ERROR = 1011
    RESTARTING = 1012
    INVALID_FRAMES = 4400
    TOKEN_EXPIRED = 4401
    REVOKED = 4403
    SILENT = 4408
    REPLACED = 4409
    TOO_SLOW = 4413
    RATE_LIMITED = 4429


REASONS = {
    CloseCode.NORMAL: "normal",
    CloseCode.PROTOCOL_ERROR: "protocol error",
    CloseCode.INVALID_UTF8: "invalid UTF-8",
    CloseCode.FRAME_TOO_LARGE: "frame too large",
    CloseCode.INTERNAL_ERROR: "internal error",
    CloseCode.RESTARTING: "server restarting",
    CloseCode.INVALID_FRAMES: "too many invalid frames",
    CloseCode.TOKEN_EXPIRED: "token expired",
    CloseCode.REVOKED: "revoked",
    CloseCode.SILENT: "silent for too long",
    CloseCode.REPLACED: "replaced by a newer connection",
    CloseCode.TOO_SLOW: "too slow",
    CloseCode.RATE_LIMITED: "rate limit exceeded",
}
"""The reason that is sent with each code, of at most 123 bytes (RFC 6455 §5.5)."""


STOP = frozenset(
    {
        CloseCode.NORMAL,
        CloseCode.PROTOCOL_ERROR,
        CloseCode.INVALID_UTF8,
        CloseCode.FRAME_TOO_LARGE,
        CloseCode.INVALID_FRAMES,
        CloseCode.REVOKED,
        CloseCode.REPLACED,
    }
)
"""After these codes a client does not reconnect, because it would be closed again; after all other codes it does."""


def fitting_reason(reason: str) -> str:
    """The beginning of the reason that fits into a close frame."""
    return reason.encode()[:123].decode(errors="ignore")
