"""The reasons to refuse a handshake: the codes of the wire protocol, each with its HTTP status."""

from __future__ import annotations

from enum import StrEnum


class RefusalCode(StrEnum):
    """The codes in `{"error": {"code", "message"}}`, the answer to a handshake that is refused."""

    TOKEN_MISSING = "token_missing"  # noqa: S105
    TOKEN_INVALID = "token_invalid"  # noqa: S105
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    FORBIDDEN_ROLE = "forbidden_role"
    FORBIDDEN_ORIGIN = "forbidden_origin"
    NOT_FOUND = "not_found"
    AT_CAPACITY = "at_capacity"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"


class AuthenticationFailed(Exception):
    """A handshake has no usable token. `code` and `message` go to the client; the text holds no part of a token."""

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid_token(message: str) -> AuthenticationFailed:
    """The error for a token that cannot be used, with a text for the client."""
    return AuthenticationFailed(RefusalCode.TOKEN_INVALID, message)


STATUSES = {
    RefusalCode.TOKEN_MISSING: 401,
    RefusalCode.TOKEN_INVALID: 401,
    RefusalCode.TOKEN_EXPIRED: 401,
    RefusalCode.FORBIDDEN_ROLE: 403,
    RefusalCode.FORBIDDEN_ORIGIN: 403,
    RefusalCode.NOT_FOUND: 404,
    RefusalCode.AT_CAPACITY: 503,
    RefusalCode.DRAINING: 503,
    RefusalCode.UNAVAILABLE: 503,
}
