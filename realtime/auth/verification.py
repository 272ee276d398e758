"""Verifying a token: signature, audience, issuer, kind and times."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from jwt import PyJWTError, decode, get_unverified_header
from jwt.exceptions import InvalidAudienceError, InvalidIssuerError, MissingRequiredClaimError

from realtime.auth.claims import mapping, principal_of
from realtime.auth.jwks import KeySet, KeysUnavailable, UnknownKey
from realtime.auth.jwt_settings import jwt_settings
from realtime.auth.shared_secret import ALGORITHM, SharedSecret
from realtime.conf import cached, conf
from realtime.protocol.handshake_errors import AuthenticationFailed, RefusalCode, invalid_token
from realtime.protocol.principal import Principal

if TYPE_CHECKING:
    from jwt.types import Options
    from rest_framework_simplejwt.backends import TokenBackend

logger = logging.getLogger(__name__)

SKEW_SECONDS: Final = 10.0
"""Clocks differ: `iat` and `nbf` may be this far ahead of ours."""
LATEST: Final = 253_402_300_800
"""The year 10,000, from which on there are no dates."""
RECOGNISED: Final = 20_000
"""Tokens that are recognised when they come again."""


async def authenticate(token: str) -> Principal:
    """Verify an access token on the event loop, in tens of microseconds. Raises `AuthenticationFailed`.

    With `JWT_JWK_URL` it may have to wait for the key, which a thread fetches.
    """
    return await verifier().authenticate(token)


def verify(token: str) -> Principal:
    """Verify an access token in synchronous code. Raises `AuthenticationFailed`."""
    return verifier().verify(token)


def leeway() -> float:
    """Seconds for which a token stays good after it expired."""
    return verifier().leeway


class Verifier:
    """Verifies tokens as `SIMPLE_JWT` says, and recognises those that it has verified before.

    After an outage every client comes back with the token it came with.
    """

    def __init__(self) -> None:
        self.backend = _backend()
        self.leeway = self.backend.get_leeway().total_seconds()
        self._mapping = mapping()
        self._kind_claim = jwt_settings().TOKEN_TYPE_CLAIM
        self._key_set = _key_set(self.backend)
        self._secret = _shared_secret(self.backend)
        self._recognised: OrderedDict[bytes, Principal] = OrderedDict()
        """By the digest of the token."""

    async def authenticate(self, token: str) -> Principal:
        """`verify`, with a key of `JWT_JWK_URL` if that is set."""
        if self._key_set is None:
            return self.verify(token)
        try:
            key = await self._key_set.find(_key_id(token))
        except KeysUnavailable as error:
            raise AuthenticationFailed(
                RefusalCode.UNAVAILABLE,
                "the keys of the identity provider cannot be fetched now; try again",
            ) from error
        except UnknownKey as error:
            raise invalid_token("the identity provider does not know the token's key (kid)") from error
        # It is not kept: its key may be taken away at any time.
        return self._principal(self._claims(token, key.key), _digest(token))

    def verify(self, token: str) -> Principal:
        """The principal of an access token. Raises `AuthenticationFailed`."""
        digest = _digest(token)
        known = self._recognised.get(digest)
        if known and time.time() < known.expires_at + self.leeway:
            return known
        claims = (self._secret and self._secret.claims(token)) or self._claims(token, self._key(token))
        principal = self._recognised[digest] = self._principal(claims, digest)
        if len(self._recognised) > RECOGNISED:
            self._recognised.popitem(last=False)
        return principal

    def _key(self, token: str) -> Any:
        return self.backend.get_verifying_key(token)  # type: ignore[arg-type]

    def _principal(self, claims: Mapping[str, Any], digest: bytes) -> Principal:
        self._check_kind(claims)
        _check_times(claims, time.time(), self.leeway)
        return principal_of(claims, self._mapping, digest.hex())

    def _check_kind(self, claims: Mapping[str, Any]) -> None:
        """A refresh token opens no connection, whatever the claims are mapped to. Raises `AuthenticationFailed`."""
        if claims.get(self._kind_claim) == "refresh":
            raise invalid_token(f"the token's {self._kind_claim} is not 'access'")

    def _claims(self, token: str, key: Any) -> Mapping[str, Any]:
        """The claims of a token that this key has signed. Raises `AuthenticationFailed`."""
        options: Options = {"verify_aud": self.backend.audience is not None}
        options |= {"verify_exp": False, "verify_nbf": False, "verify_iat": False}  # `_check_times` does
        options |= {
            "verify_sub": False,
            "verify_jti": False,
        }  # an id may be a whole number: `principal_of` checks
        try:
            claims: Mapping[str, Any] = decode(
                token,
                key,
                algorithms=[self.backend.algorithm],
                audience=self.backend.audience,
                issuer=self.backend.issuer,
                options=options,
            )
        except (InvalidAudienceError, InvalidIssuerError, MissingRequiredClaimError) as error:
            raise invalid_token("the token's aud or iss is not what this server expects") from error
        except Exception as error:
            # For a token that is signed but absurd the library raises any exception.
            logger.info("token refused", extra={"error": type(error).__name__})
            raise invalid_token("the token is not valid") from error
        return claims


@cached(of=("REALTIME", "SIMPLE_JWT"))
def verifier() -> Verifier:
    """The verifier of this process, made at its first use (it needs the app registry)."""
    return Verifier()


def _backend() -> TokenBackend:
    from rest_framework_simplejwt.backends import TokenBackend  # noqa: PLC0415

    jwt = jwt_settings()

    return TokenBackend(
        jwt.ALGORITHM,
        jwt.SIGNING_KEY,
        jwt.VERIFYING_KEY,
        jwt.AUDIENCE,
        jwt.ISSUER,
        jwt.JWK_URL,
        jwt.LEEWAY,
        jwt.JSON_ENCODER,
    )


def _key_set(backend: TokenBackend) -> KeySet | None:
    """The keys of `JWT_JWK_URL`, if tokens are verified with them."""
    if backend.jwks_client is None or backend.algorithm.startswith("HS"):
        return None
    timeout, outage = conf().jwks_timeout, conf().jwks_outage
    return KeySet(backend.jwks_client.uri, backend.algorithm, timeout=timeout, outage=outage)


def _shared_secret(backend: TokenBackend) -> SharedSecret | None:
    """The shared secret that tokens are signed with; None where PyJWT has more to check than a signature."""
    if backend.algorithm != ALGORITHM or backend.audience is not None or backend.issuer is not None:
        return None
    try:
        return SharedSecret(backend.signing_key)
    except ValueError:
        return None


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def _key_id(token: str) -> str:
    try:
        kid = get_unverified_header(token).get("kid")
    except (PyJWTError, ValueError, RecursionError) as error:
        raise invalid_token("the token is not valid") from error
    if not isinstance(kid, str):
        raise invalid_token("the token names no key (kid)")
    return kid


def _check_times(claims: Mapping[str, Any], now: float, leeway: float) -> None:
    """Raises `AuthenticationFailed` when the token has expired, or is not valid yet; the text says by how much."""
    for name in ("iat", "nbf"):
        ahead = _time(claims, name, now) - now
        allowed = max(SKEW_SECONDS, leeway)
        if ahead > allowed:
            raise invalid_token(
                f"the token's {name} is {round(ahead, 1):g} s ahead of this server's clock; "
                f"up to {allowed:g} s are allowed"
            )
    ago = now - _time(claims, "exp")
    if ago >= leeway:
        raise AuthenticationFailed(
            RefusalCode.TOKEN_EXPIRED, f"the token has expired: its exp was {round(ago, 1):g} s ago"
        )


def _time(claims: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A claim in seconds since the epoch. Raises `AuthenticationFailed`."""
    value = claims.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid_token(
            f"the token's {name} is not a number" if name in claims else f"the token has no {name}"
        )
    if not -LATEST < value < LATEST:  # (which NaN is not)
        raise invalid_token(f"the token's {name} is not a time")
    return value
