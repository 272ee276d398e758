"""What the decorators of the catalogue take: anything else is refused where it is declared, before a message comes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from inspect import isclass, iscoroutinefunction, isfunction, ismethod, unwrap

from django.core.exceptions import ImproperlyConfigured

from realtime.protocol.payloads import Payload

_NAME = re.compile(r"[a-z][a-z0-9_-]*:[a-z][a-z0-9_-]*|[a-z]{1,32}", re.ASCII)


def is_async(function: object) -> bool:
    """Whether a call returns something to await, as far as a declaration tells: an object with `__call__` may."""
    if isinstance(function, partial):
        return is_async(function.func)
    if isclass(function) or not callable(function):
        return False
    return not (isfunction(function) or ismethod(function)) or iscoroutinefunction(unwrap(function))


def check_name(name: object) -> None:
    """Raise `ImproperlyConfigured` for what is no name of an event: `@server_event` without its parentheses, too."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ImproperlyConfigured(f"event name {name!r}: expected 'topic:verb' in lower case")


def check_class(event: str, payload: object) -> None:
    """Raise `ImproperlyConfigured` if an event is declared with anything but a class of payloads."""
    if not (isclass(payload) and issubclass(payload, Payload)):
        raise ImproperlyConfigured(
            f"event {event!r}: expected a class derived from Payload, got {spelled(payload)}"
        )


def check_routing(event: str, rooms: object) -> None:
    """Raise `ImproperlyConfigured` if what is to return the rooms of a payload is no function, or an async one."""
    if rooms is not None and (not callable(rooms) or iscoroutinefunction(rooms)):
        raise ImproperlyConfigured(
            f"event {event!r}: rooms: expected a function (payload) -> list of rooms that is not async, "
            f"got {spelled(rooms)}"
        )


def check_routes(event: str, routes: object) -> None:
    """Raise `TypeError` if what `rooms` returned is no list of rooms, but one room, or nothing."""
    if isinstance(routes, str) or not isinstance(routes, Iterable):
        raise TypeError(f"{event}: its rooms: expected a list of rooms, got {routes!r}")


def spelled(value: object) -> str:
    """What was declared, as its owner finds it."""
    return f"{value.__module__}.{value.__qualname__}" if isclass(value) or isfunction(value) else repr(value)
