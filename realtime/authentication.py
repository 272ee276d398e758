"""Who is calling: the credential of a handshake, and the claims of its token."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from uuid import uuid4

from django.core.exceptions import ImproperlyConfigured
from jwt import PyJWK, PyJWKClient, PyJWKClientError, PyJWTError, get_unverified_header

from realtime.conf import conf
from realtime.logs import spelled
from realtime.payloads import Id
from realtime.refusals import RefusalCode
from realtime.rooms import HUB, NAMESPACES, PORTAL
from realtime.surrogates import whole

if TYPE_CHECKING:
    from rest_framework_simplejwt.backends import TokenBackend

logger = logging.getLogger(__name__)

SUBPROTOCOL = "realtime.v1"
BEARER_SUBPROTOCOL = "bearer."
MAX_TOKEN_LENGTH = 8192
MAX_NAME_LENGTH = 256
DEFAULT_GROUPS = ("attendants",)
KEYS_SECONDS = 300.0
"""The keys of `JWK_URL` are asked for again after so long: a key taken away there is refused here."""
REFETCH_SECONDS = 1.0
"""At least so long between two fetches of `JWK_URL`."""

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
        return self.role in roles_of(namespace)


def roles_of(namespace: str) -> tuple[str, ...]:
    """The roles that may enter a namespace."""
    return {HUB: conf().hub_roles, PORTAL: conf().portal_roles}[namespace]


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


class KeySet(PyJWKClient):
    """The keys of `JWK_URL` by their id.

    A token with a known key never waits for a fetch. One with an unknown key, which anybody can make up, causes
    one, but they are `REFETCH_SECONDS` apart, also when the endpoint hangs.
    """

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(url, cache_jwk_set=False, timeout=timeout)
        self._keys: dict[str, PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = Lock()

    def knows(self, kid: object) -> bool:
        """Whether the key can be had without asking."""
        return kid in self._keys and time.monotonic() < self._fetched_at + KEYS_SECONDS

    def get_signing_key(self, kid: str) -> PyJWK:
        """The key; asks for it if need be, which blocks. Raises `jwt.PyJWKClientError`."""
        if not self.knows(kid):
            self.fetch(kid)
        if not self.knows(kid):
            raise PyJWKClientError("the token's key is not known")
        return self._keys[kid]

    def fetch(self, kid: object) -> None:
        """Ask for the keys, unless somebody just did. Blocks; failure is logged."""
        with self._fetching:
            if self.knows(kid) or time.monotonic() < self._tried_at + REFETCH_SECONDS:
                return
            try:
                self._keys = {str(key.key_id): key for key in self.get_signing_keys()}
                self._fetched_at = time.monotonic()
            except (PyJWTError, OSError, ValueError) as error:
                logger.warning("no answer from JWK_URL", extra={"error": spelled(error)})
            finally:
                self._tried_at = time.monotonic()


@lru_cache(maxsize=1)
def _backend() -> TokenBackend:
    """simplejwt's backend as configured by `SIMPLE_JWT`, with a JWKS client that keeps nobody waiting."""
    from rest_framework_simplejwt.state import token_backend  # noqa: PLC0415  (needs the app registry)

    _verified.clear()
    if token_backend.jwks_client is not None:
        token_backend.jwks_client = KeySet(token_backend.jwks_client.uri, conf().jwks_timeout)
    return token_backend


@lru_cache(maxsize=1)
def _jwks_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="jwks")


def leeway() -> float:
    """Seconds that a token stays good after it expired."""
    return _backend().get_leeway().total_seconds()


async def authenticate(token: str) -> Principal:
    """Verify an access token. Raises `AuthenticationFailed`.

    That is done on the event loop (tens of microseconds). With `JWK_URL` the key may have to be fetched first,
    which blocks: in a thread.
    """
    keys = _backend().jwks_client
    if isinstance(keys, KeySet):
        kid = _key_id(token)
        if not keys.knows(kid):
            await asyncio.get_running_loop().run_in_executor(_jwks_thread(), keys.fetch, kid)
        if not keys.knows(kid):
            raise AuthenticationFailed(RefusalCode.TOKEN_INVALID, "the token's key is not known")
        return verify(token)  # its key may be taken away any time
    return _recognise(token) or verify(token)


_verified: OrderedDict[bytes, Principal] = OrderedDict()
"""By the digest of their tokens. After an outage everybody comes back with the token they came with."""


def _recognise(token: str) -> Principal | None:
    """Who came with this very token before, unless it has expired since."""
    principal = _verified.get(_digest(token))
    return principal if principal and time.time() < principal.expires_at + leeway() else None


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def _key_id(token: str) -> object:
    try:
        return get_unverified_header(token).get("kid")
    except (PyJWTError, ValueError) as error:
        raise AuthenticationFailed(RefusalCode.TOKEN_INVALID, "the token is not valid") from error


def verify(token: str) -> Principal:
    """Verify an access token (synchronously). Raises `AuthenticationFailed`."""
    from rest_framework_simplejwt.exceptions import ExpiredTokenError, TokenError  # noqa: PLC0415
    from rest_framework_simplejwt.tokens import AccessToken  # noqa: PLC0415  (needs the app registry)

    _backend()
    try:
        claims = AccessToken(token).payload  # type: ignore[arg-type]
    except ExpiredTokenError as error:
        raise AuthenticationFailed(RefusalCode.TOKEN_EXPIRED, "the token has expired") from error
    except TokenError as error:
        raise AuthenticationFailed(RefusalCode.TOKEN_INVALID, "the token is not valid") from error
    except Exception as error:
        # A signed token with absurd claims (exp in the year 300,000) makes date arithmetic raise anything.
        logger.info("token refused", extra={"error": type(error).__name__})
        raise AuthenticationFailed(RefusalCode.TOKEN_INVALID, "the token is not valid") from error
    principal = _principal(_whole(claims))
    _verified[_digest(token)] = principal
    if len(_verified) > VERIFIED:
        _verified.popitem(last=False)
    return principal


def _whole(claims: dict[str, Any]) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = whole(claims)
    except RecursionError as error:
        raise AuthenticationFailed(RefusalCode.TOKEN_INVALID, "a claim is nested too deeply") from error
    return found


def _principal(claims: Mapping[str, Any]) -> Principal:
    from rest_framework_simplejwt.settings import api_settings  # noqa: PLC0415

    role = claims.get("role")
    if not isinstance(role, str) or not any(role in roles_of(namespace) for namespace in NAMESPACES):
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
            jti=str(claims["jti"]),
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
