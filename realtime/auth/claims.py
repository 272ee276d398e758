"""From the claims of a verified token to its principal, also those of another issuer (`REALTIME["CLAIMS"]`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from django.utils.module_loading import import_string

from realtime.auth.jwt_settings import jwt_settings
from realtime.conf import conf, load
from realtime.protocol.handshake_errors import AuthenticationFailed, invalid_token
from realtime.protocol.namespaces import roles
from realtime.protocol.payloads import Id, PresenceGroup
from realtime.protocol.principal import Principal
from realtime.protocol.surrogates import whole_text
from realtime.protocol.values import NotJSON, encode
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

MAX_NAME_LENGTH: Final = 256
DEFAULT_GROUPS: Final = ("attendants",)
_LOGGED = 80
"""Characters of a claim, or of an error, in a log line."""

Claims = Mapping[str, Any]


def mapping() -> Callable[[Claims], Claims]:
    """The function that maps a token's claims to those of docs/protocol.md. Raises `ImportError`."""
    if not conf().claims:
        return _own_claims()
    found: Callable[[Claims], Claims] = load(import_string, conf().claims)
    return found


def principal_of(claims: Claims, mapped: Callable[[Claims], Claims], token_id: str) -> Principal:
    """The principal of a token whose signature and times are good.

    Args:
        claims: all claims of the token.
        mapped: the function that `mapping` returns.
        token_id: the id of the token if it has no `jti`.

    Raises:
        AuthenticationFailed: when the claims cannot be mapped, or their values are not what docs/protocol.md says.
    """
    try:
        encoded = encode(claims)
    except NotJSON as error:
        raise invalid_token(f"the token has a claim that cannot be read: {error}") from error
    found = _mapped(msgspec.json.decode(encoded), mapped)
    role, name = found.get("role"), found.get("name") or ""
    if not isinstance(role, str) or role not in roles():
        raise invalid_token("the token has no known role")
    if not isinstance(name, str):
        raise invalid_token(f"the token's name: expected a string, got {type(name).__name__}")
    return Principal(
        user_id=_id("user_id", found.get("user_id")),
        role=role,
        name=whole_text(name)[:MAX_NAME_LENGTH],
        groups=_groups(found.get("groups")),
        threads=frozenset(_id("threads", item) for item in _items("threads", found.get("threads"), ())),
        jti=_token_id(found.get("jti")) or token_id,
        expires_at=float(claims["exp"]),
        encoded_claims=encoded,
    )


def _own_claims() -> Callable[[Claims], Claims]:
    """The mapping for tokens that simplejwt has made, as its settings are now."""
    jwt = jwt_settings()
    token_type, token_id, user_id = jwt.TOKEN_TYPE_CLAIM, jwt.JTI_CLAIM, jwt.USER_ID_CLAIM

    def mapped(claims: Claims) -> Claims:
        if claims.get(token_type) != "access":
            raise invalid_token(f"the token's {token_type} is not 'access'")
        if not _token_id(claims.get(token_id)):
            raise invalid_token(f"the token has no {token_id}")
        return {**claims, "user_id": claims.get(user_id), "jti": claims[token_id]}

    return mapped


def _mapped(claims: Claims, mapped: Callable[[Claims], Claims]) -> Claims:
    try:
        return dict(mapped(claims))
    except AuthenticationFailed:
        raise
    except Exception as error:
        logger.warning("claims not mapped", extra={"error": spelled(error)[:_LOGGED]})
        raise invalid_token("the token's claims are not those that this server expects") from error


def _id(name: str, value: object) -> str:
    try:
        return Id.parse(value)
    except ValueError as error:
        raise invalid_token(f"the token's {name}: {error}") from error


def _token_id(value: object) -> str:
    """The id that a token has; empty if it has none."""
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise invalid_token(
            f"the token's jti: expected a string or a whole number, got {type(value).__name__}"
        )
    return "" if value is None else str(value)


def _groups(value: object) -> tuple[str, ...]:
    """The groups that can be rooms; a name that cannot be a room is logged and left out."""
    found: dict[str, None] = {}
    left_out = []
    for item in _items("groups", value, DEFAULT_GROUPS):
        try:
            found[PresenceGroup.parse(item)] = None
        except ValueError:
            left_out.append(item)
    if left_out:
        first = repr(left_out[0])[:_LOGGED]
        logger.warning("groups left out of a token", extra={"groups": len(left_out), "first": first})
    return tuple(found)


def _items(name: str, value: object, default: Iterable[object]) -> Iterable[object]:
    if value is None:
        return default
    if not isinstance(value, list | tuple | set | frozenset):
        raise invalid_token(f"the token's {name}: expected a list, got {type(value).__name__}")
    return value
