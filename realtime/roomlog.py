"""The log of each room: what was published in it lately, in order, and where it ends.

A position (`offset` on the wire) is a number of microseconds of Redis' clock that is never used twice in a room,
so that a Redis that lost its newest writes cannot hand out an old one again. Recovery is all or nothing, after
Centrifugo (research: `recovered` only if everything after the position is still there).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
from redis.commands.core import AsyncScript

from realtime.conf import conf
from realtime.pipe import Argument, Pipes, begin
from realtime.redis import client, in_batches, key, location, run, script

ROOM_SECONDS = 7 * 86400
"""A room in which nothing happens is remembered for so long."""
MARKER_SECONDS = 600
"""Messages with an `id` delivered within so long before are duplicates."""

ID_LENGTH = 32
"""Of a connection id. Where a publication has more in its place, a `traceparent` follows behind a NUL."""

_SCRIPTS = Path(__file__).parent / "scripts"
_append = script(_SCRIPTS / "append.lua")
_ends = script(_SCRIPTS / "ends.lua")
_after = script(_SCRIPTS / "after.lua")

_POSITION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)

Target = tuple[str, str]
"""Namespace and room."""
Lease = tuple[str, str]
"""Key and holder (`realtime.lease`)."""
Cursor = tuple[str, bytes, bytes]
"""A hash, a field of it, and the entry up to which its stream has been delivered."""

NO_LEASE: Lease = ("", "")
NO_CURSOR: Cursor = ("", b"", b"")


class Publication(msgspec.Struct, frozen=True):
    """Something published in a room."""

    position: int
    previous: int
    exclude: str
    """A connection that is left out; empty: nobody is."""
    frame: bytes
    """The client's text frame."""
    traceparent: str = ""
    """The trace that it is part of (`realtime.tracing`)."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Something to publish, once, in each of its rooms."""

    rooms: Sequence[tuple[str, bytes, bytes]]
    """Group, and the frame before and after its offset."""
    source: str = ""
    entry: str = ""
    """Its name within the source, which sorts like the source does."""
    id: str = ""
    exclude: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class After:
    """What came after a position."""

    end: int
    missed: int
    publications: Sequence[Publication]


class Unrecoverable(Exception):
    """Not everything after the position is known any more. `end` is where the room stands now."""

    def __init__(self, end: int) -> None:
        super().__init__(end)
        self.end = end


@lru_cache(maxsize=4096)
def _base(prefix: str, group: str) -> str:
    return f"{prefix}:{{{group}}}"


def base(group: str) -> str:
    """First part of the keys of a group. The braces are Redis Cluster's hash tag: all of them live in one slot."""
    return _base(conf().prefix, group)


def channel(group: str) -> bytes:
    """The Pub/Sub channel of a group."""
    return _channel(base(group))


@lru_cache(maxsize=4096)
def _channel(base: str) -> bytes:
    return f"{base}:live".encode()


def parse_position(text: str) -> int | None:
    """A client's offset as a position; None when it cannot be one of ours."""
    return int(text) if _POSITION.fullmatch(text) else None


def _room_seconds() -> int:
    return max(ROOM_SECONDS, int(conf().history_ttl) + 1)  # never forgotten before its log


async def append(
    entries: Sequence[Entry],
    *,
    pipes: Pipes | None = None,
    lease: Lease = NO_LEASE,
    cursor: Cursor = NO_CURSOR,
    again: str = "",
    publish: bool = True,
) -> list[list[bytes]]:
    """Append entries to their rooms' logs and publish them, atomically (in a Cluster: slot by slot); then set a cursor.

    Returns the position of each in each of its rooms, empty where it was left out as a duplicate; an empty list
    when `lease` is somebody else's. Entries of a source up to `again` were appended before, perhaps not everywhere:
    a room that has nothing of the source leaves out those that are older than itself.

    Raises `redis.RedisError`: then nothing, or everything, was done, and the same call again does what is left.
    """
    if location().nodes:
        return await _append_by_slot(entries, lease, cursor, again, publish, pipes=pipes)
    return list(await _run(_append, *_arguments(entries, lease, cursor, again, publish), pipes))


async def _run(
    script: AsyncScript, keys: Sequence[str], arguments: list[Argument], pipes: Pipes | None
) -> Any:
    """Over a pipe, which is quick, or over the shared client."""
    if pipes is None:
        return await run(script, keys, arguments)
    return await pipes.to(keys[0] if keys else "").run(script, keys, arguments)


async def _send(pipes: Pipes | None, command: str, name: str, *arguments: Argument) -> Any:
    """The same for a command about a key."""
    if pipes is None:
        return await client().execute_command(command, name, *arguments)  # type: ignore[no-untyped-call]
    return await pipes.to(name).send(command, name, *arguments)


def send_append(
    pipes: Pipes, entries: Sequence[Entry], *, cursor: Cursor, again: str = "", publish: bool
) -> asyncio.Future[list[list[bytes]]]:
    """`append` that has been sent when this returns, so that more can follow in the same write.

    Fails when Redis does not know the script: `prepare` first. (In a Cluster it has only begun.)
    """
    if location().nodes:
        return begin(_append_by_slot(entries, NO_LEASE, cursor, again, publish, pipes=pipes))
    keys, arguments = _arguments(entries, NO_LEASE, cursor, again, publish)
    return pipes.to("").send("EVALSHA", _append.sha, len(keys), *keys, *arguments)


def send_append_silently(pipes: Pipes, entries: Sequence[Entry], *, cursor: Cursor) -> None:
    """`send_append` without an answer, where `prepare` allows it: `send_look` tells whether it was done."""
    keys, arguments = _arguments(entries, NO_LEASE, cursor, "", publish=True)
    pipes.to("").send_silently("EVALSHA", _append.sha, len(keys), *keys, *arguments)


def send_look(pipes: Pipes, cursor: Cursor) -> asyncio.Future[tuple[bytes | None, bytes | None]]:
    """Where the cursor stands; and when (in µs) the last `append` moved it, with how many entries it left out."""
    return pipes.to("").send("HMGET", cursor[0], cursor[1], cursor[1] + b":last")


async def prepare(pipes: Pipes) -> bool:
    """Make Redis know what `send_append` runs; whether it may be sent silently. Raises `redis.RedisError`."""
    if location().nodes:
        return False
    await pipes.to("").send("SCRIPT", "LOAD", _append.script)
    return await pipes.to("").may_be_silent()


async def _append_by_slot(
    entries: Sequence[Entry], lease: Lease, cursor: Cursor, again: str, publish: bool, *, pipes: Pipes | None
) -> list[list[bytes]]:
    """One script a slot, all at once, and the cursor after all of them.

    Whoever dies half-way, or finds one server away, has done some of it. That the same again is harmless does not hang
    on what is atomic: every room knows the last entry that it took of a source, and the ids that it got, and both are
    written where the room is.
    """
    if lease[0] and await _send(pipes, "GET", lease[0]) != lease[1].encode():
        return []
    places = [(number, room) for number, entry in enumerate(entries) for room in entry.rooms]

    async def append_part(part: Sequence[int]) -> Sequence[bytes]:
        of_slot = [
            msgspec.structs.replace(entries[number], rooms=[room for _, room in rooms])
            for number, rooms in groupby((places[place] for place in part), key=itemgetter(0))
        ]
        found = await _run(_append, *_arguments(of_slot, NO_LEASE, NO_CURSOR, again, publish), pipes)
        return [position for positions in found for position in positions]

    positions = iter(await in_batches([base(group) for _, (group, _, _) in places], append_part))
    if cursor[0]:
        await _send(pipes, "HSET", *cursor)
    return [[next(positions) for _ in entry.rooms] for entry in entries]


def _arguments(
    entries: Sequence[Entry], lease: Lease, cursor: Cursor, again: str, publish: bool
) -> tuple[list[str], list[Argument]]:
    settings = conf()
    keys: list[str] = []
    arguments: list[Argument] = [
        settings.history_size,
        int(settings.history_ttl * 1000),
        settings.history_bytes,
        _room_seconds(),
        MARKER_SECONDS,
        *lease,
        _publish_command() if publish else "",
        *cursor,
        "" if location().nodes else key("id", ""),
        again,
    ]
    for entry in entries:
        exclude = f"{entry.exclude}\0{entry.traceparent}" if entry.traceparent else entry.exclude
        arguments += [len(entry.rooms), entry.source, entry.entry, entry.id, exclude]
        for group, head, tail in entry.rooms:
            keys.append(base(group))
            arguments += [head, tail]
    return keys, arguments


def _publish_command() -> str:
    return "SPUBLISH" if location().nodes else "PUBLISH"


async def ends(groups: Iterable[str], pipes: Pipes | None = None) -> dict[str, int]:
    """The end of each group's room. Raises `redis.RedisError`."""
    wanted = list(groups)
    bases = [base(group) for group in wanted]
    found = await in_batches(
        bases, lambda part: _run(_ends, [bases[number] for number in part], [_room_seconds()], pipes)
    )
    return {group: int(position) for group, position in zip(wanted, found, strict=True)}


async def after(group: str, position: int, most: int, pipes: Pipes | None = None) -> After:
    """What came after a position: their number, and the first `most` of them.

    Raises `Unrecoverable` when not all of it is known, or `redis.RedisError`.
    """
    end, *known = await _run(_after, [base(group)], [position, most], pipes)
    if not known:
        raise Unrecoverable(int(end or 0))
    missed, publications = known
    return After(int(end), missed, [unpack(publication) for publication in publications])


def unpack(publication: bytes) -> Publication:
    """A publication as `append.lua` writes it into a room's log and its channel."""
    start = 51 + int(publication[45:51])
    exclude, traceparent = publication[51:start].decode(), ""
    if start > 51 + ID_LENGTH:
        exclude, _, traceparent = exclude.partition("\0")
    return Publication(
        int(publication[17:33]), int(publication[1:17]), exclude, publication[start:], traceparent
    )
