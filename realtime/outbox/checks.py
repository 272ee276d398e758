"""System checks of the outbox."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.db import router

from realtime.outbox.table import default_database

_DUMMY = "django.db.backends.dummy"


@register("realtime")
def check_outbox(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find settings with which no message could be kept, without opening a connection."""
    return [*_publisher(), *_database()]


def _publisher() -> Iterator[CheckMessage]:
    if not apps.is_installed("realtime"):
        yield Error(
            "INSTALLED_APPS has realtime.outbox, but not realtime",
            hint="Add 'realtime', whose publisher writes into the outbox.",
            id="realtime.E040",
        )


def _database() -> Iterator[CheckMessage]:
    alias = default_database()
    engine = settings.DATABASES.get(alias, {}).get("ENGINE") or _DUMMY
    if engine == _DUMMY:
        yield Error(
            f"The table of realtime.outbox belongs to the database {alias!r}, which is not configured",
            hint=f"Expected one of DATABASES: {', '.join(sorted(settings.DATABASES)) or 'it has none'}. "
            "DATABASE_ROUTERS choose it (db_for_write).",
            id="realtime.E041",
        )
    elif not router.allow_migrate(alias, "realtime_outbox", model_name="outboxmessage"):
        yield Error(
            f"DATABASE_ROUTERS send the rows of realtime.outbox to {alias!r}, and keep its table out of it",
            hint="db_for_write and allow_migrate have to agree on the app realtime_outbox.",
            id="realtime.E042",
        )
