"""Expected values beside those on the wire: whether they are equal, and in what the nearest one differs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from realtime.protocol.values import NotJSON, encode

_TEXT = 200
"""Characters that a failed assertion shows of a value."""
_LINES = 20
"""Events that a failed assertion lists."""
_MISSING = object()


def is_equal(expected: Any, actual: Any) -> bool:
    """Whether a value is what a test expects.

    The expected value is converted as `publish` does it. Ids are strings on the wire, so a number equals its digits.
    What JSON has no form for is compared by its own `==`, such as `unittest.mock.ANY`.
    """
    if isinstance(expected, Mapping) and isinstance(actual, dict):
        wanted = {str(name): value for name, value in expected.items()}
        return wanted.keys() == actual.keys() and all(is_equal(wanted[name], actual[name]) for name in wanted)
    if isinstance(expected, list | tuple) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(is_equal, expected, actual))
    expected = _on_the_wire(expected)
    if type(expected) in {int, float} and isinstance(actual, str):
        return str(expected) == actual
    if isinstance(expected, int | float) and isinstance(expected, bool) != isinstance(actual, bool):
        return False  # True equals 1 in Python, and not in JSON
    return bool(expected == actual)


def _on_the_wire(value: Any) -> Any:
    try:
        return json.loads(encode(value))
    except NotJSON:
        return value


def differences(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """A sentence for each expected field that an event's data does not have. None stands for a field left out."""
    return list(_differences(expected, actual))


def _differences(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> Iterator[str]:
    for name, value in expected.items():
        found = actual.get(name, _MISSING)
        if found is _MISSING:
            if value is not None:
                yield f"{name} is missing, expected {short(value)}"
        elif not is_equal(value, found):
            yield f"{name} is {short(found)}, expected {short(value)}"


def nearest_line(event: str, told: Iterable[list[str]]) -> list[str]:
    """A line about the event with the fewest differences, if an event of this name has any."""
    fewest = min((each for each in told if each), key=len, default=None)
    return [f"The nearest {event}: {'; '.join(fewest)}."] if fewest else []


def short(value: Any) -> str:
    """A value for a message, cut when it is long."""
    text = repr(value)
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}…"


def described(event: str, fields: Mapping[str, Any]) -> str:
    """`thread:message with thread_id=42`"""
    listed = ", ".join(f"{name}={short(value)}" for name, value in fields.items())
    return f"{event} with {listed}" if listed else event


def listing(title: str, lines: Iterable[str]) -> str:
    """A numbered list for a message, cut when it is long."""
    every = list(lines)
    if not every:
        return f"{title}: nothing."
    shown = [f"  {number}. {line}" for number, line in enumerate(every[:_LINES], 1)]
    if len(every) > _LINES:
        shown.append(f"  … and {len(every) - _LINES} more")
    return "\n".join([f"{title} ({len(every)}):", *shown])
