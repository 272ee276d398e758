"""Rooms and the names they go by: the only place that spells a room or a group.

A room is `kind:id` (`thread:42`) and lives in one namespace: the room `user:7` of one is not that of another. To the
layer of rooms it is the group `namespace.kind.id`. Neither a namespace nor a kind has a dot in it, so the name can be
read back, whatever the id is made of. What Channels' specification allows in the name of a group is narrower:
`portable_group`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from realtime.conf import cached
from realtime.protocol.ids import is_id
from realtime.protocol.namespaces import PRESENCE, THREAD, USER, RoomKind, is_name, kinds, namespaces

CONTROL_GROUP: Final = "control"
"""The group of every instance, for signals (revocations, for example)."""

_PORTABLE = re.compile(r"[A-Za-z0-9._-]{1,99}")
"""The names of groups that every channel layer accepts."""

user_room = USER.room
thread_room = THREAD.room
presence_room = PRESENCE.room


def presence_rooms(principal: Any) -> Iterable[str]:
    """The rooms of a user's groups: the initial rooms of a team."""
    return map(presence_room, principal.groups)


def kind_of(room: str) -> RoomKind | None:
    """The kind of a well-formed room name; None for anything else."""
    name, _, id = room.partition(":")
    kind = kinds().get(name)
    return kind if kind is not None and kind.is_id(id) else None


def is_room_name(text: str) -> bool:
    """Whether `text` is made like the name of a room, if perhaps of a kind that there is not."""
    name, _, id = text.partition(":")
    kind = kinds().get(name)
    return is_name(name) and (is_id if kind is None else kind.is_id)(id)


def is_room(name: str) -> bool:
    """Whether `name` is a well-formed room name."""
    return kind_of(name) is not None


def thread_of(room: str) -> str | None:
    """The thread's id when the room is a thread's."""
    kind, _, id_ = room.partition(":")
    return id_ if kind == THREAD.name else None


@cached(4096)
def group_name(namespace: str, room: str) -> str:
    """The group of a room."""
    return f"{namespace}.{room.replace(':', '.', 1)}"


@lru_cache(maxsize=4096)
def portable_group(group: str) -> str:
    """What stands for a group in a channel layer that takes only the names of Channels' specification.

    That is the name itself, or a digest of one that is too long or has other characters in it.
    """
    if _PORTABLE.fullmatch(group):
        return group
    return f"room.{sha256(group.encode()).hexdigest()}"


@cached(4096)
def groups_of(names: frozenset[str], room: str) -> tuple[str, ...]:
    """The groups of a room in several namespaces."""
    return tuple(group_name(namespace, room) for namespace in sorted(names))


@cached(4096)
def room_of_group(group: str) -> str | None:
    """The room that a group is, or None for a group of another kind."""
    name, _, rest = group.partition(".")
    room = rest.replace(".", ":", 1)
    return room if name in namespaces() and is_room(room) else None
