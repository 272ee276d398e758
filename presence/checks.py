"""The system checks of presence: time zones, and whether the package `realtime` is the kernel presence is built on.

They import nothing of the kernel, as there may be none.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register


def foreign_kernel() -> str:
    """A sentence about a package `realtime` of another origin; empty if it is ours."""
    spec = find_spec("realtime")
    places = [*(spec.submodule_search_locations or ())] if spec else []
    if Path(__file__).resolve().parents[1] / "realtime" in {Path(place).resolve() for place in places}:
        return ""
    found = places[0] if places else "not a package"
    return (
        f"the package `realtime` is {found}, not the one of realtime-sockets: rename it, or run this process where it "
        "is not on Python's path"
    )


@register("realtime")
def check_time_zones(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find a project whose database takes no moments with a time zone, as all moments of presence are."""
    if settings.USE_TZ:
        return []
    problem = "presence in INSTALLED_APPS needs USE_TZ = True: nothing of presence could be recorded or shown"
    return [Error(problem, hint="Set USE_TZ, or leave the app out.", id="realtime.E033")]


@register("realtime")
def check_kernel(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find a package `realtime` that is imported instead of ours."""
    problem = foreign_kernel()
    hint = "docs/settings.md, under collisions, says which processes need which package."
    return [Error(problem, hint=hint, id="realtime.E030")] if problem else []
