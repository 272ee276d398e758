"""Ids and names of rooms, as the server takes them: text, whatever the program has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_ID = re.compile(r"[A-Za-z0-9_.@|+~-]{1,64}")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,15}")


def id_of(value: str | int) -> str:
    """An id as the server delivers it.

    Raises:
        TypeError: It is neither a text nor a whole number.
        ValueError: The server would refuse it.

    >>> id_of(42)
    '42'
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"expected an id, which is a str or an int, got {type(value).__name__}")
    # Not what a subclass writes of itself: `str` of a member of an Enum is its name.
    text = str.__str__(value) if isinstance(value, str) else int.__repr__(value)
    if _ID.fullmatch(text) is None:
        raise ValueError(
            f"expected an id of 1 to 64 characters out of A-Z a-z 0-9 _ - . @ | + ~, got {text[:80]!r}"
        )
    return text


def room_of(name: str | int) -> str:
    """The room of a thread, whose id has no colon; the name of any other room is the room.

    What an id looks like is up to the kind of the room, and only that of a thread is known here. Raises what `id_of`
    raises.
    """
    if not isinstance(name, str) or ":" not in name:
        return f"thread:{id_of(name)}"
    kind, _, id = name.partition(":")
    if kind == "thread":
        return f"thread:{id_of(id)}"
    if _KIND.fullmatch(kind) is None or not id.strip() or not id.isprintable():
        raise ValueError(f"expected the name of a room, such as 'board:7', got {name[:80]!r}")
    return str.__str__(name)


def _rooms(offsets: Mapping[str | int, Any]) -> dict[str, Any]:
    return {room_of(name): offset for name, offset in offsets.items()}


_SPELLED: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(
        ("join:thread", "leave:thread", "typing:start", "typing:stop", "cursor:move"), ("thread_id", id_of)
    ),
    "join": ("room", room_of),
    "leave": ("room", room_of),
    "resume": ("rooms", _rooms),
}
"""The fields of the protocol's own events that hold ids, and how they are written."""


def payload(event: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a program gives for an event, as it is sent, with its ids as text.

    It is a copy, because it may wait. The ids in a product's own events are the product's affair.

    Raises:
        TypeError, ValueError: It cannot be written as JSON, or what `id_of` raises.
    """
    if not isinstance(event, str) or not isinstance(data, Mapping):
        got = f"{type(event).__name__} and {type(data).__name__}"
        raise TypeError(f"expected the name of an event and its payload, a mapping, got {got}")
    name, spell = _SPELLED.get(event, ("", str))
    spelled = {**data, name: spell(data[name])} if name in data else dict(data)
    copy: dict[str, Any] = json.loads(json.dumps(spelled, allow_nan=False))
    return copy
