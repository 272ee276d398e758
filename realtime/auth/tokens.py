"""Who is calling: the credential of a handshake, and the claims of its token."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from uuid import uuid4

from django.core.exceptions import ImproperlyConfigured
from jwt import PyJWTError, decode, get_unverified_header
from jwt.exceptions import InvalidAudienceError, InvalidIssuerError, MissingRequiredClaimError

from realtime.auth.jwks import KeySet, KeysUnavailable, UnknownKey
from realtime.conf import conf
from realtime.protocol.handshake_errors import RefusalCode
from realtime.protocol.namespaces import namespaces, roles
from realtime.protocol.payloads import Id
from realtime.protocol.surrogates import whole

if TYPE_CHECKING:
    from jwt.types import Options
    from rest_framework_simplejwt.backends import TokenBackend

logger = logging.getLogger(__name__)

SUBPROTOCOL = "realtime.v1"
BEARER_SUBPROTOCOL = "bearer."
MAX_TOKEN_LENGTH = 8192
MAX_NAME_LENGTH = 256
DEFAULT_GROUPS = ("attendants",)
SKEW_SECONDS = 10.0
"""Clocks differ: so far ahead of ours `iat` and `nbf` may be."""
LATEST = 253_402_300_800
"""The year 10,000, from which on there are no dates."""

Scope = Mapping[str, Any]


VERIFIED = 20_000
"""So many tokens are recognised when they come again."""


class AuthenticationFailed(Exception):
    """No usable token. `code` is what the client is told; the text never holds any part of a token."""

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Principal:
    """The claims of a valid access token."""

    user_id: str
    role: str
    name: str
    groups: tuple[str, ...]
    threads: frozenset[str]
    jti: str
    expires_at: float
    """Seconds since the epoch, as the token says; the leeway comes on top."""

    def may_enter(self, namespace: str) -> bool:
        """Whether this role belongs in the namespace."""
        return self.role in namespaces()[namespace].roles


def credential(scope: Scope) -> str:
    """The one token of a handshake: `Authorization`, sub-protocol or query string.

    Raises `AuthenticationFailed` when there is none, more than one, or it cannot be a token.
    """
    found = [*_from_authorization(scope), *_from_subprotocols(scope), *_from_query(scope)]
    if not found:
        raise AuthenticationFailed(RefusalCode.TOKEN_MISSING, "no token was sent")
    if len(found) > 1:
        raise AuthenticationFailed(RefusalCode.TOKEN_INVALID, "more than one credential was sent")
    token = found[0]
    if len(token) > MAX_TOKEN_LENGTH:
        raise AuthenticationFailed(
            RefusalCode.TOKEN_INVALID, f"the token is longer than {MAX_TOKEN_LENGTH} characters"
        )
    return token


def headers_of(scope: Scope, name: bytes) -> list[str]:
    """All values of one header, as latin-1 text."""
    return [value.decode("latin-1").strip() for header, value in scope["headers"] if header == name]


def _from_authorization(scope: Scope) -> Iterable[str]:
    for value in headers_of(scope, b"authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise AuthenticationFailed(RefusalCode.TOKEN_INVALID, "Authorization must be 'Bearer <token>'")
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
        return parse_qs(query, max_num_fields=20).get("token", ())
    except ValueError as error:
        raise AuthenticationFailed(
            RefusalCode.TOKEN_INVALID, "the query string has too many fields"
        ) from error


@lru_cache(maxsize=1)
def _backend() -> TokenBackend:
    """simplejwt's backend as configured by `SIMPLE_JWT`."""
    from rest_framework_simplejwt.state import token_backend  # noqa: PLC0415  (needs the app registry)

    _verified.clear()
    _published_keys.cache_clear()
    return token_backend


@lru_cache(maxsize=1)
def _published_keys() -> KeySet | None:
    """The keys of `JWK_URL`, if tokens are verified with them."""
    backend = _backend()
    if backend.jwks_client is None or backend.algorithm.startswith("HS"):
        return None
    return KeySet(backend.jwks_client.uri, timeout=conf().jwks_timeout, outage=conf().jwks_outage)


def leeway() -> float:
    """Seconds that a token stays good after it expired."""
    return _backend().get_leeway().total_seconds()


async def authenticate(token: str) -> Principal:
    """Verify an access token. Raises `AuthenticationFailed`.

    That is done on the event loop (tens of microseconds). With `JWK_URL` the key may have to be fetched first,
    which blocks: in a thread.
    """
    _backend()
    if (keys := _published_keys()) is None:
        return _recognise(token) or verify(token)
    try:
        key = await keys.find(_key_id(token))
    except KeysUnavailable as error:
        raise AuthenticationFailed(
            RefusalCode.UNAVAILABLE, "the keys of the identity provider cannot be fetched now; try again"
        ) from error
    except UnknownKey as error:
        raise _invalid("the identity provider does not know the token's key (kid)") from error
    return _principal(_claims(token, key.key))  # not remembered: its key may be taken away any time


_verified: OrderedDict[bytes, Principal] = OrderedDict()
"""By the digest of their tokens. After an outage everybody comes back with the token they came with."""


def _recognise(token: str) -> Principal | None:
    """Who came with this very token before, unless it has expired since."""
    principal = _verified.get(_digest(token))
    return principal if principal and time.time() < principal.expires_at + leeway() else None


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def _key_id(token: str) -> str:
    try:
        kid = get_unverified_header(token).get("kid")
    except (PyJWTError, ValueError, RecursionError) as error:
        raise _invalid("the token is not valid") from error
    if not isinstance(kid, str):
        raise _invalid("the token names no key (kid)")
    return kid


def _invalid(message: str) -> AuthenticationFailed:
    return AuthenticationFailed(RefusalCode.TOKEN_INVALID, message)


def verify(token: str) -> Principal:
    """Verify an access token (synchronously). Raises `AuthenticationFailed`."""
    principal = _principal(_claims(token, _backend().get_verifying_key(token)))  # type: ignore[arg-type]
    _verified[_digest(token)] = principal
    if len(_verified) > VERIFIED:
        _verified.popitem(last=False)
    return principal


def _claims(token: str, key: Any) -> Mapping[str, Any]:
    """The claims of an access token that this key has signed, and whose time it is. Raises `AuthenticationFailed`."""
    backend = _backend()
    options: Options = {"verify_aud": backend.audience is not None}
    options |= {"verify_exp": False, "verify_nbf": False, "verify_iat": False}  # `_check_times` does
    try:
        claims: Mapping[str, Any] = decode(
            token,
            key,
            algorithms=[backend.algorithm],
            audience=backend.audience,
            issuer=backend.issuer,
            options=options,
        )
    except (InvalidAudienceError, InvalidIssuerError, MissingRequiredClaimError) as error:
        raise _invalid("the token's aud or iss is not what this server expects") from error
    except Exception as error:
        # What is signed, but absurd, makes the library raise anything.
        logger.info("token refused", extra={"error": type(error).__name__})
        raise _invalid("the token is not valid") from error
    _check_kind(claims)
    _check_times(claims, time.time())
    return _whole(claims)


def _check_kind(claims: Mapping[str, Any]) -> None:
    """An access token has a type and an id. Raises `AuthenticationFailed`."""
    from rest_framework_simplejwt.settings import api_settings  # noqa: PLC0415

    if claims.get(api_settings.TOKEN_TYPE_CLAIM) != "access":
        raise _invalid(f"the token's {api_settings.TOKEN_TYPE_CLAIM} is not 'access'")
    if claims.get(api_settings.JTI_CLAIM) is None:
        raise _invalid(f"the token has no {api_settings.JTI_CLAIM}")


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    """Raises `AuthenticationFailed` when the token has expired, or is not valid yet; the text says by how much."""
    for name in ("iat", "nbf"):
        ahead = _time(claims, name, now) - now
        allowed = max(SKEW_SECONDS, leeway())
        if ahead > allowed:
            raise _invalid(
                f"the token's {name} is {round(ahead, 1):g} s ahead of this server's clock; "
                f"up to {allowed:g} s are allowed"
            )
    ago = now - _time(claims, "exp")
    if ago >= leeway():
        raise AuthenticationFailed(
            RefusalCode.TOKEN_EXPIRED, f"the token has expired: its exp was {round(ago, 1):g} s ago"
        )


def _time(claims: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A claim in seconds since the epoch. Raises `AuthenticationFailed`."""
    value = claims.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(
            f"the token's {name} is not a number" if name in claims else f"the token has no {name}"
        )
    if not -LATEST < value < LATEST:  # (which NaN is not)
        raise _invalid(f"the token's {name} is not a time")
    return value


def _whole(claims: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = whole(claims)
    except RecursionError as error:
        raise _invalid("a claim is nested too deeply") from error
    return found


def _principal(claims: Mapping[str, Any]) -> Principal:
    from rest_framework_simplejwt.settings import api_settings  # noqa: PLC0415

    role = claims.get("role")
    if not isinstance(role, str) or role not in roles():
        raise AuthenticationFailed(RefusalCode.TOKEN_INVALID, "the token has no known role")
    name = claims.get("name") or ""
    if not isinstance(name, str):
        raise AuthenticationFailed(RefusalCode.TOKEN_INVALID, "the claim 'name' is not a string")
    try:
        return Principal(
            user_id=Id.parse(claims.get(api_settings.USER_ID_CLAIM)),
            role=role,
            name=name[:MAX_NAME_LENGTH],
            groups=tuple(dict.fromkeys(_ids(claims, "groups", DEFAULT_GROUPS))),
            threads=frozenset(_ids(claims, "threads", ())),
            jti=str(claims[api_settings.JTI_CLAIM]),
            expires_at=float(claims["exp"]),
        )
    except ValueError as error:
        raise AuthenticationFailed(
            RefusalCode.TOKEN_INVALID, f"the token has an odd claim: {error}"
        ) from error


def _ids(claims: Mapping[str, Any], name: str, default: Iterable[str]) -> Iterable[str]:
    value = claims.get(name)
    if value is None:
        return default
    if not isinstance(value, list):
        raise ValueError(f"{name}: expected a list of ids")
    return [Id.parse(item) for item in value]


def issue(
    *,
    user_id: str,
    role: str,
    name: str = "",
    groups: Iterable[str] | None = None,
    threads: Iterable[str] = (),
    ttl: float = 3600,
) -> str:
    """Sign an access token that this server accepts; `ttl` in seconds.

    Raises `ImproperlyConfigured` when the process has no signing key.
    """
    from rest_framework_simplejwt.settings import api_settings  # noqa: PLC0415

    now = time.time()
    claims: dict[str, Any] = {
        api_settings.TOKEN_TYPE_CLAIM: "access",
        api_settings.JTI_CLAIM: uuid4().hex,
        api_settings.USER_ID_CLAIM: user_id,
        "iat": int(now),
        "exp": int(now + ttl),
        "role": role,
        "name": name,
        "threads": list(threads),
    }
    if groups is not None:
        claims["groups"] = list(groups)
    if not _backend().signing_key:
        raise ImproperlyConfigured(
            "JWT_SIGNING_KEY is not set: this process can verify tokens but not sign them"
        )
    return _backend().encode(claims)
