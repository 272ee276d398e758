"""Tokens that are signed with a shared secret (HS256), verified without building a general token first.

PyJWT prepares its key anew for every token and looks at each character in Python, which is most of what verifying
costs. Here only a token of the ordinary kind is accepted; whatever else comes is left to PyJWT, which refuses it or
knows what it means. So this can never say more than PyJWT does, and a test compares the two.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from hmac import compare_digest, digest
from typing import Any, Final

from jwt import get_algorithm_by_name
from jwt.exceptions import InvalidKeyError

ALGORITHM: Final = "HS256"
SHORTEST_KEY: Final = 32
"""Bytes; PyJWT warns of a shorter key (RFC 7518 §3.2)."""

_TOKEN = re.compile(
    r"(?P<signed>(?P<header>[\w-]{8,64})\.(?P<payload>[\w-]+))\.(?P<signature>[\w-]{43})", re.ASCII
)
_PLAIN_HEADERS: Final = ({"alg": ALGORITHM}, {"alg": ALGORITHM, "typ": "JWT"})


class SharedSecret:
    """Verifies ordinary tokens that were signed with one key. Raises `ValueError` for a key that PyJWT does not take.

    SharedSecret(key).claims(token)
    """

    def __init__(self, key: str | bytes | None) -> None:
        try:
            prepared: bytes = get_algorithm_by_name(ALGORITHM).prepare_key(key)
        except (InvalidKeyError, TypeError) as error:
            raise ValueError("no key for HS256") from error
        if len(prepared) < SHORTEST_KEY:
            raise ValueError(f"a key for HS256 has {SHORTEST_KEY} bytes at least")
        self._key = prepared
        self._header = ""
        """An ordinary header, as it was spelled when it came last: an issuer always writes the same."""

    def claims(self, token: str) -> Mapping[str, Any] | None:
        """The claims of an ordinary token with a good signature; None for any other token, good or not."""
        found = _TOKEN.fullmatch(token)
        if found is None or not self._has_signed(found["signed"], found["signature"]):
            return None
        if found["header"] != self._header:
            if _json(found["header"]) not in _PLAIN_HEADERS:
                return None
            self._header = found["header"]
        claims = _json(found["payload"])
        return claims if isinstance(claims, dict) else None

    def _has_signed(self, text: str, signature: str) -> bool:
        expected = urlsafe_b64encode(digest(self._key, text.encode(), "sha256"))
        return compare_digest(expected, b"%b=" % signature.encode())


def _json(segment: str) -> Any:
    """The JSON in a segment of a token; None if it is spelled in another way than an encoder spells it."""
    encoded = segment.encode()
    padded = encoded + b"=" * (-len(encoded) % 4)
    try:
        decoded = urlsafe_b64decode(padded)
        return json.loads(decoded) if urlsafe_b64encode(decoded) == padded else None
    except (ValueError, RecursionError):
        return None
