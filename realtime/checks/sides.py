"""Which checks concern which side: those of an app are registered when it is installed, or when its command runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from django.apps import AppConfig
from django.core.checks import ERROR, CheckMessage, Error, register, run_checks
from django.core.exceptions import ImproperlyConfigured

from realtime import extras


class Side(NamedTuple):
    """What an app, or a package of ours, needs, and what checks it."""

    extra: str
    modules: tuple[str, ...]
    """Those that register its checks."""


SIDES = {
    "realtime.server": Side("asgi", ("realtime.checks.server", "realtime.checks.tokens")),
    "realtime.auth": Side("asgi", ("realtime.checks.tokens",)),
    "realtime.web": Side("web", ("realtime.checks.web", "realtime.checks.tokens")),
}


def register_checks(app: str) -> None:
    """Register the checks of an app, or the one that says that its extra is not installed."""
    side = SIDES[app]
    if extras.missing(side.extra):
        register(partial(_check_extra, app=app, extra=side.extra), "realtime")
        return
    for module in side.modules:
        import_module(module)


def require(app: str, *, except_for: Collection[str] = ()) -> None:
    """Run the checks of an app in a process that no command of ours started.

    Raises `ImproperlyConfigured` with every error that they find, those with the ids `except_for` excepted.
    """
    for module in ("realtime.checks.collisions", "realtime.checks.publishing"):
        import_module(module)  # those of the app `realtime`, which need not be installed here
    register_checks(app)
    errors = [
        f"{each.id}: {each.msg}. {each.hint}"
        for each in run_checks(tags=["realtime"])
        if each.is_serious(ERROR) and not each.is_silenced() and each.id not in except_for
    ]
    if errors:
        raise ImproperlyConfigured("\n".join(errors))


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
