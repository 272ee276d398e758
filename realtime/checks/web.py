"""The checks of the web side that ships with the project, for production."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Info, register
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured

from realtime.auth.jwt_settings import jwt_settings


@register("realtime", deploy=True)
def check_web_in_production(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find settings of the web side that are right for development only, or worth a thought."""
    return [*_web()]


def _web() -> Iterator[CheckMessage]:
    if "*" in settings.ALLOWED_HOSTS:
        yield CheckWarning(
            "ALLOWED_HOSTS contains *, so that every host name is accepted",
            hint="List the names under which the web side is reached.",
            id="realtime.W113",
        )
    if _signing_key() == settings.SECRET_KEY:
        yield CheckWarning(
            "SECRET_KEY and JWT_SIGNING_KEY are the same",
            hint="One signs the sessions of the admin, the other signs tokens. Use two different keys.",
            id="realtime.W114",
        )
    if settings.DATABASES.get("default", {}).get("ENGINE") == "django.db.backends.sqlite3":
        yield Info(
            "The database is SQLite: web side and recorder must run on one machine",
            hint="Set DATABASE_URL to postgres://….",
            id="realtime.I115",
        )


def _signing_key() -> Any:
    try:
        return jwt_settings().SIGNING_KEY
    except ImproperlyConfigured:
        return None  # realtime.E009 reports it
