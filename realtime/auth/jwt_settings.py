"""The settings of tokens, in one place: those of simplejwt."""

from __future__ import annotations

from typing import Any


def jwt_settings() -> Any:
    """`SIMPLE_JWT`, which a project may leave out, over simplejwt's defaults (the key is then SECRET_KEY).

    It is imported at the first use, since it reads Django's settings when it is imported.
    """
    from rest_framework_simplejwt.settings import api_settings  # noqa: PLC0415

    return api_settings
