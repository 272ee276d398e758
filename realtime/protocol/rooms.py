"""Rooms and the names they go by: the only place that spells a room, a group or a namespace.

A room is `kind:id` (`thread:42`) and lives in one namespace: the hub's `user:7` is not the portal's. To the layer of
rooms it is the group `namespace.kind.id`. Neither a namespace nor a kind has a dot in it, so the name can be read back,
whatever the id is made of. What Channels' specification allows in the name of a group is narrower: `portable_group`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import Final

from realtime.protocol.ids import is_group, is_id

HUB: Final = "hub"
PORTAL: Final = "portal"
NAMESPACES: Final = frozenset({HUB, PORTAL})

CONTROL_GROUP: Final = "control"
"""The group every process is in: revocations and the like."""

_PORTABLE = re.compile(r"[A-Za-z0-9._-]{1,99}")
"""The names of groups that every channel layer accepts."""


def user_room(user_id: str) -> str:
    """Everything addressed to one user."""
    return f"user:{user_id}"


def thread_room(thread_id: str) -> str:
    """One conversation."""
    return f"thread:{thread_id}"


def presence_room(group: str) -> str:
    """A team: who is available, and its queue."""
    return f"presence:{group}"


def is_room(name: str) -> bool:
    """Whether `name` is a well-formed room name."""
    kind, _, id_ = name.partition(":")
    return is_group(id_) if kind == "presence" else kind in {"user", "thread"} and is_id(id_)


def thread_of(room: str) -> str | None:
    """The thread's id when the room is a thread's."""
    kind, _, id_ = room.partition(":")
    return id_ if kind == "thread" else None


@lru_cache(maxsize=4096)
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


@lru_cache(maxsize=4096)
def groups_of(namespaces: frozenset[str], room: str) -> tuple[str, ...]:
    """The groups of a room in several namespaces."""
    return tuple(group_name(namespace, room) for namespace in sorted(namespaces))


@lru_cache(maxsize=4096)
def room_of_group(group: str) -> str | None:
    """The room that a group is, or None for a group of another kind."""
    namespace, _, rest = group.partition(".")
    room = rest.replace(".", ":", 1)
    return room if namespace in NAMESPACES and is_room(room) else None
