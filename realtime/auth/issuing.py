"""Issuing access tokens that this server accepts, for trying things out and for tests."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from django.core.exceptions import ImproperlyConfigured
from jwt.exceptions import PyJWTError

from realtime.auth.jwt_settings import jwt_settings, signing_key_name
from realtime.auth.verification import verifier


def issue(
    *,
    user_id: str,
    role: str,
    name: str = "",
    groups: Iterable[str] | None = None,
    threads: Iterable[str] = (),
    ttl: float = 3600,
    claims: Mapping[str, Any] | None = None,
) -> str:
    """Sign an access token; it is good for `ttl` seconds, and has further `claims`, which may replace these.

        token = issue(user_id="7", role="attendant", name="Ana", groups=["sales"])

    Raises `ImproperlyConfigured` when the process has no key that signs.
    """
    jwt = jwt_settings()

    now = time.time()
    signed: dict[str, Any] = {
        jwt.TOKEN_TYPE_CLAIM: "access",
        jwt.JTI_CLAIM: uuid4().hex,
        jwt.USER_ID_CLAIM: user_id,
        "iat": int(now),
        "exp": int(now + ttl),
        "role": role,
        "name": name,
        "threads": list(threads),
    }
    if groups is not None:
        signed["groups"] = list(groups)
    backend = verifier().backend
    if not backend.signing_key:
        raise ImproperlyConfigured(
            "JWT_SIGNING_KEY is not set: this process can verify tokens but not sign them"
        )
    try:
        return backend.encode({**signed, **(claims or {})})
    except (PyJWTError, ValueError, AttributeError) as error:  # AttributeError: it is a public key
        raise ImproperlyConfigured(
            f"{signing_key_name()} is not a key that signs with {backend.algorithm}: "
            "this process can verify tokens but not sign them"
        ) from error
