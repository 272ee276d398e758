"""The extras of the distribution (`pip install 'realtime-sockets[server]'`), and which of them are installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, requires

from django.core.exceptions import ImproperlyConfigured

DISTRIBUTION = "realtime-sockets"
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[([^\]]+)\])?.*;.*\bextra\s*==\s*[\"']([^\"']+)[\"']")


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
    """The distributions of an extra that are not installed. Without metadata of our own (a bare checkout): none."""
    return tuple(name for name in _distributions(extra) if not _is_installed(name))


def _distributions(extra: str) -> Iterator[str]:
    for found in map(_REQUIREMENT.match, _requirements()):
        if found and found[3] == extra and found[1] != DISTRIBUTION:
            yield found[1]
        elif found and found[3] == extra:
            for further in found[2].split(","):
                yield from _distributions(further.strip())


def _requirements() -> list[str]:
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
