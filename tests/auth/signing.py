"""Tokens signed by hand, and what is said when one is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from rest_framework_simplejwt import settings as simplejwt

from realtime.protocol.handshake_errors import AuthenticationFailed


def claims(**changes: Any) -> dict[str, Any]:
    """A token's claims with these changed; a claim that is `...` is left out."""
    changed = {
        "token_type": "access",
        "jti": "j1",
        "user_id": "7",
        "role": "attendant",
        "exp": int(time.time()) + 60,
        **changes,
    }
    return {name: value for name, value in changed.items() if value is not ...}


def sign(**changes: Any) -> str:
    return jwt.encode(claims(**changes), simplejwt.api_settings.SIGNING_KEY, algorithm="HS256")


def failure(work: Callable[[], Any]) -> AuthenticationFailed:
    with pytest.raises(AuthenticationFailed) as caught:
        work()
    return caught.value
