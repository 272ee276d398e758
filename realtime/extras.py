"""The distribution: whether this is its checkout, and which extras (`realtime-sockets[server]`) are installed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

DISTRIBUTION = "realtime-sockets"
ROOT = Path(__file__).resolve().parents[1]
"""The folder of the packages: a checkout, or `site-packages`."""
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(?:\[(?P<extras>[^\]]+)\])?(?:>=(?P<lowest>[\d.]+))?"
    r".*;.*\bextra\s*==\s*[\"'](?P<extra>[^\"']+)[\"']"
)


@cache
def project() -> Mapping[str, Any]:
    """`[project]` of our pyproject.toml in a checkout; empty where the package is installed.

    Other distributions have been known to leave a pyproject.toml of theirs in `site-packages`.
    """
    try:
        found = tomllib.loads((ROOT / "pyproject.toml").read_text()).get("project", {})
    except (OSError, ValueError):
        return {}
    return found if found.get("name") == DISTRIBUTION else {}


def problem(what: str, extra: str) -> str:
    """One sentence that says how to install what `what` needs; empty if it is installed.

    >>> problem("runsockets", "server")
    ''
    """
    absent = missing(extra)
    install = f"pip install '{DISTRIBUTION}[{extra}]'"
    return f"{what} needs {install}; not installed: {', '.join(absent)}" if absent else ""


def require(what: str, extra: str) -> None:
    """Raise `ImproperlyConfigured` with that sentence, unless it is empty."""
    if text := problem(what, extra):
        raise ImproperlyConfigured(text)


@cache
def missing(extra: str) -> tuple[str, ...]:
    """The distributions of an extra that are not installed, or in a version that is too old."""
    return tuple(filter(None, (_lacking(name, lowest) for name, lowest in _distributions(extra))))


def _distributions(extra: str) -> Iterator[tuple[str, str]]:
    """Each with its lowest version, which may be empty."""
    for found in filter(None, map(_REQUIREMENT.match, _requirements())):
        if found["extra"] == extra and found["name"] != DISTRIBUTION:
            yield found["name"], found["lowest"] or ""
        elif found["extra"] == extra:
            for further in found["extras"].split(","):
                yield from _distributions(further.strip())


def _requirements() -> list[str]:
    """As the metadata of a distribution has them; those of a checkout stand in its pyproject.toml."""
    if project():
        extras = project()["optional-dependencies"].items()
        return [f'{each}; extra == "{extra}"' for extra, needed in extras for each in needed]
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []


def _lacking(name: str, lowest: str) -> str:
    """What is wrong with an installed distribution; empty if nothing is."""
    try:
        installed = version(name)
    except PackageNotFoundError:
        return name
    return f"{name}>={lowest} (but {installed})" if _numbers(installed) < _numbers(lowest) else ""


def _numbers(text: str) -> list[int]:
    """
    >>> _numbers("0.53.0rc1")
    [0, 53, 0]
    """
    return [int(number) for number in re.findall(r"\d+", re.sub(r"[^\d.].*", "", text))]
