"""Which checks concern which side: those of an app are registered when it is installed, or when its command runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, register

from realtime import extras

MODULES = {
    "realtime.server": ("realtime.checks.server", "realtime.checks.tokens"),
    "realtime.web": ("realtime.checks.web", "realtime.checks.tokens"),
}
"""The modules that register the checks of an app."""


def register_checks(app: str, *, extra: str) -> None:
    """Register the checks of an app, or the one that says that its extra is not installed."""
    if extras.missing(extra):
        register(partial(_check_extra, app=app, extra=extra), "realtime")
        return
    for module in MODULES[app]:
        import_module(module)


def _check_extra(
    app_configs: Sequence[AppConfig] | None, *, app: str, extra: str, **_: Any
) -> list[CheckMessage]:
    return [
        Error(
            extras.problem(f"The app {app!r}", extra),
            hint="Install it, or leave the app out of INSTALLED_APPS of this process.",
            id="realtime.E031",
        )
    ]
