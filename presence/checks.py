"""The system check of presence: whether the package `realtime` is the kernel that presence is built on.

It imports nothing of the kernel, as there may be none.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.apps import AppConfig
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
def check_kernel(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find a package `realtime` that is imported instead of ours."""
    problem = foreign_kernel()
    hint = "docs/settings.md, under collisions, says which processes need which package."
    return [Error(problem, hint=hint, id="realtime.E030")] if problem else []
