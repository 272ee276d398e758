"""Collisions: packages of another origin where this process needs ours, or whose files were mixed with ours.

The import names of our packages are short, so other distributions and a team's own apps may have them, too. A process
that only publishes needs neither of the apps that hold consumers and policies.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    PackagePath,
    distribution,
    packages_distributions,
)
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from django.apps import AppConfig, apps
from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured

from realtime.conf import conf
from realtime.extras import DISTRIBUTION
from realtime.protocol.namespaces import Namespace, namespaces

SHIPPED = "realtime.namespaces."
"""The dotted paths of namespaces that name packages of ours."""
PUBLISHER = "presence"
"""The package of ours that the publisher itself uses."""
_ROOT = Path(__file__).resolve().parents[2]
"""The folder that our packages are in."""


@register("realtime")
def check_collisions(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find packages that are imported instead of ours."""
    return [
        Error(
            text,
            hint="docs/settings.md, under collisions, says which processes need which package.",
            id="realtime.E030",
        )
        for text in problems(serves=apps.is_installed("realtime.server"))
    ]


def problems(*, serves: bool) -> list[str]:
    """A sentence for each collision. `serves`: the process needs what connections need, too."""
    return [*_mixed(), *map(shadowed, sorted(_shadowed(_needed(serves))))]


def shadowed(name: str) -> str:
    """The sentence about a package that is found before ours."""
    return (
        f"the package `{name}` is {_place(name)}, not the one of {DISTRIBUTION}: rename it, or run this process "
        "where it is not on Python's path"
    )


def _shadowed(names: Collection[str]) -> Iterator[str]:
    for name in names:
        if (_ROOT / name / "__init__.py").exists() and _place(name) != _ROOT / name:
            yield name


def _place(name: str) -> Path | None:
    """The folder of the package that is imported under this name."""
    spec = find_spec(name)
    places = [*(spec.submodule_search_locations or ()), spec.origin] if spec else []
    return Path(places[0]).resolve() if places and places[0] else None


def _needed(serves: bool) -> set[str]:
    """The packages, other than the kernel, that this process needs: those that registered namespaces of ours name."""
    try:
        declared = {path.rpartition(".")[2] for path in conf().namespaces if path.startswith(SHIPPED)}
        shipped = [each for name, each in namespaces().items() if name.upper() in declared]
    except ImproperlyConfigured:
        return {PUBLISHER}  # realtime.E001 or realtime.E018 reports it
    paths = chain.from_iterable(map(_paths_of_a_server if serves else _paths_of_a_publisher, shipped))
    return {PUBLISHER, *(path.partition(".")[0] for path in paths)} - {"realtime"}


def _paths_of_a_publisher(namespace: Namespace) -> Iterator[str]:
    yield from namespace.events


def _paths_of_a_server(namespace: Namespace) -> Iterator[str]:
    named = (*namespace.events, namespace.consumer, *namespace.policies.values())
    yield from (path for path in named if isinstance(path, str))


@cache
def _mixed() -> tuple[str, ...]:
    """A sentence for each other distribution that installed files into one of our packages."""
    try:
        own = distribution(DISTRIBUTION)
    except PackageNotFoundError:  # a bare checkout
        return ()
    names = (own.read_text("top_level.txt") or "").split()
    suspects = sorted(name for name in names if (_ROOT / name).is_dir() and _is_mixed(name, own))
    installed = packages_distributions() if suspects else {}  # which reads the metadata of all of them
    return tuple(
        f"the distribution {other!r} has a package `{name}`, too: its files and those of {DISTRIBUTION} overwrite each "
        "other; uninstall one of them, and install the other one again"
        for name in suspects
        for other in sorted({*installed.get(name, ())} - {DISTRIBUTION})
    )


def _is_mixed(name: str, own: Distribution) -> bool:
    """Whether a folder holds what we did not put there, or another `__init__.py`."""
    files = {path.parts[1]: path for path in own.files or () if path.parts[0] == name}
    found = {path.name for path in (_ROOT / name).iterdir() if path.is_dir() or path.suffix == ".py"}
    init = files.get("__init__.py")
    return (
        not found - {"__pycache__"} <= files.keys()
        or init is None
        or _digest(init) != getattr(init.hash, "value", "")
    )


def _digest(path: PackagePath) -> str:
    """As a RECORD has it."""
    return urlsafe_b64encode(sha256(path.read_binary()).digest()).rstrip(b"=").decode()
