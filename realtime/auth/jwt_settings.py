"""The settings of tokens, in one place: those of simplejwt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured


def jwt_settings() -> Any:
    """`SIMPLE_JWT`, which a project may leave out, over simplejwt's defaults (the key is then SECRET_KEY).

    It is imported at the first use, since it reads Django's settings when it is imported. Raises `ImproperlyConfigured`
    for a setting that is no dict, with which simplejwt fails anywhere.
    """
    given = getattr(settings, "SIMPLE_JWT", {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"SIMPLE_JWT: expected a dict, got {type(given).__name__}")
    from rest_framework_simplejwt.settings import api_settings  # noqa: PLC0415

    return api_settings


def signing_key_name() -> str:
    """The setting that holds the key to sign with, as its owner knows it."""
    return "JWT_SIGNING_KEY" if "SIGNING_KEY" in getattr(settings, "SIMPLE_JWT", {}) else "SECRET_KEY"
