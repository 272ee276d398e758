"""The options of a client, checked once: what is wrong fails where it was written, and not an hour later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

LONGEST_SECONDS = 86_400.0
"""The longest time that an option may name: a day."""


def seconds(name: str, value: Any) -> float:
    """A time of more than 0 s, and at most a day. Raises `TypeError` or `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number of seconds, got {type(value).__name__}")
    if not 0 < value <= LONGEST_SECONDS:
        raise ValueError(
            f"{name}: expected more than 0 and at most {LONGEST_SECONDS:g} seconds, got {value!r}"
        )
    return float(value)


def count(name: str, value: Any, *, least: int) -> int:
    """A whole number. Raises `TypeError` or `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return value


def function(name: str, value: Any) -> Callable[..., Any]:
    """Something to call. Raises `TypeError`."""
    if not callable(value):
        raise TypeError(f"{name}: expected a function, got {type(value).__name__}")
    found: Callable[..., Any] = value
    return found


def address(value: Any) -> str:
    """An address that a WebSocket can have.

    Raises `TypeError` or `ValueError`, which do not quote the address: it may hold a token.
    """
    if not isinstance(value, str):
        raise TypeError(f"url: expected a str, got {type(value).__name__}")
    if problem := _problem(value):
        raise ValueError(f"url: expected an address such as wss://example.com/hub/, {problem}")
    return value


def _problem(url: str) -> str:
    if not url.isascii() or not url.isprintable() or " " in url:
        return "got one with a space, a line break or another character that an address cannot have"
    try:
        parts = urlsplit(url)
        is_complete = bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError as error:
        return f"and its host or port is none ({type(error).__name__})"
    if parts.scheme not in {"ws", "wss"}:
        return f"got the scheme {parts.scheme[:20]!r}"
    if not is_complete:
        return "got one without a host, or with the port 0"
    if parts.fragment or "@" in parts.netloc:
        return "got one with a fragment or a user name"
    return ""
