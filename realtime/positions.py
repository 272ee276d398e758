"""Where a room stands: the position (`offset` on the wire) of everything published in it, kept in Redis.

A position is a number of microseconds of Redis' clock that is never used twice in a room, so that a Redis that
lost its newest writes cannot hand out an old one again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from realtime.redis import client, key, script

RECORD_SECONDS = 7 * 86400
"""A room in which nothing happens is remembered for so long."""
MARKER_SECONDS = 600
"""Messages with an `id` delivered within so long before are duplicates."""

_SCRIPTS = Path(__file__).parent / "scripts"
_assign = script(_SCRIPTS / "assign.lua")
_ends = script(_SCRIPTS / "ends.lua")

Target = tuple[str, str]
"""Namespace and room."""


def _record(target: Target) -> str:
    # The braces are Redis Cluster's hash tag: all keys of a room live in one slot.
    return key(f"{{{target[0]}:{target[1]}}}", "room")


async def ends(targets: Iterable[Target]) -> dict[Target, str]:
    """The end of each room. Raises `redis.RedisError`."""
    wanted = list(targets)
    found = await _ends(keys=[_record(t) for t in wanted], args=[RECORD_SECONDS], client=client())
    return {target: position.decode() for target, position in zip(wanted, found, strict=True)}


async def assign(
    targets: Sequence[Target], *, source: str, entry: str, id: str | None = None
) -> dict[Target, str] | None:
    """Give an entry its position in each of its rooms.

    `entry` names it within its `source` and sorts like the source does. None: an entry with the same `id` was
    delivered before. A room missing from the answer has this entry already. Raises `redis.RedisError`.
    """
    marker = key("delivered", id) if id else ""
    found = await _assign(
        keys=[marker, *(_record(t) for t in targets)],
        args=[source, entry, MARKER_SECONDS, RECORD_SECONDS],
        client=client(),
    )
    if found is None:
        return None
    return {target: p.decode() for target, p in zip(targets, found, strict=True) if p}
