"""The credential of a handshake: the one token that it carries, in whichever place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from realtime.conf import conf
from realtime.protocol.handshake_errors import AuthenticationFailed, RefusalCode, invalid_token

SUBPROTOCOL: Final = "realtime.v1"
BEARER_SUBPROTOCOL: Final = "bearer."
MAX_TOKEN_LENGTH: Final = 8192
"""Characters."""
_QUERY_FIELDS = 20

Scope = Mapping[str, Any]
"""An ASGI connection scope."""


def credential(scope: Scope) -> str:
    """The one token of a handshake: `Authorization`, sub-protocol or query string.

    Raises `AuthenticationFailed` when there is none, more than one, or it cannot be a token.
    """
    found = [*_from_authorization(scope), *_from_subprotocols(scope), *_from_query(scope)]
    if not found:
        raise AuthenticationFailed(RefusalCode.TOKEN_MISSING, "no token was sent")
    if len(found) > 1:
        raise invalid_token("more than one credential was sent")
    token = found[0]
    if len(token) > MAX_TOKEN_LENGTH:
        raise invalid_token(f"the token is longer than {MAX_TOKEN_LENGTH} characters")
    return token


def headers_of(scope: Scope, name: bytes) -> list[str]:
    """All values of one header, as latin-1 text."""
    return [value.decode("latin-1").strip() for header, value in scope["headers"] if header == name]


def _from_authorization(scope: Scope) -> Iterable[str]:
    for value in headers_of(scope, b"authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise invalid_token("Authorization must be 'Bearer <token>'")
        yield token.strip()


def _from_subprotocols(scope: Scope) -> Iterable[str]:
    for value in scope.get("subprotocols") or ():
        if value.startswith(BEARER_SUBPROTOCOL):
            yield value.removeprefix(BEARER_SUBPROTOCOL)


def _from_query(scope: Scope) -> Iterable[str]:
    if not conf().query_token:
        return ()
    query = scope.get("query_string", b"").decode("latin-1")
    try:
        return parse_qs(query, max_num_fields=_QUERY_FIELDS).get("token", ())
    except ValueError as error:
        raise invalid_token("the query string has too many fields") from error
