"""The history of each room: its latest publications, in order, and where it ends.

A position (`offset` on the wire) is a number of microseconds of Redis' clock that is never used twice in a room,
so that a Redis that lost its newest writes cannot hand out an old one again. Recovery is all or nothing, after
Centrifugo (research: `recovered` only if everything after the position is still there).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
from redis.commands.core import AsyncScript

from realtime.conf import conf
from realtime.protocol.publication import After, Draft, Unrecoverable, unpack
from realtime.redis.client import in_batches, key, script
from realtime.redis.connection import Argument
from realtime.redis.pipelining import Pipes, begin, pipes
from realtime.redis.topology import Topology

ROOM_SECONDS = 7 * 86400
"""How long a room is remembered in which nothing is published."""
MARKER_SECONDS = 600
"""A message is a duplicate if one with the same `id` was delivered within this time before."""

SLOTS_BYTES = 4 << 20
"""Size of the bodies that are on their way to the slots of a Cluster at once."""

READ_BYTES = 64 * 1024
"""Size of what is read from a history, and written to a client, before the server waits for the client."""

_SCRIPTS = Path(__file__).parent / "scripts"
APPEND = _SCRIPTS / "append.lua"
_append = script(APPEND)
_CUT = (_SCRIPTS / "cut.lua").read_bytes()
_ends = script(_CUT + (_SCRIPTS / "ends.lua").read_bytes())
_after = script(_CUT + (_SCRIPTS / "after.lua").read_bytes())

Appending = asyncio.Future[list[list[bytes]]]
"""The position of each entry in each of its rooms, and the `refusals`, once Redis has answered."""
Lease = tuple[str, str]
"""Key and holder (`realtime.redis.lease`)."""
Cursor = tuple[str, bytes, bytes]
"""A hash, a field of it, and the entry up to which its stream has been delivered."""

NO_LEASE: Lease = ("", "")
NO_CURSOR: Cursor = ("", b"", b"")
NOTHING_RECEIVED: Mapping[str, int] = MappingProxyType({})


@lru_cache(maxsize=4096)
def _base(prefix: str, group: str) -> str:
    return f"{prefix}:{{{group}}}"


def base(group: str) -> str:
    """First part of the keys of a group. The braces are Redis Cluster's hash tag: all of them live in one slot."""
    return _base(conf().prefix, group)


def channel(group: str) -> bytes:
    """The Pub/Sub channel of a group."""
    return _channel(base(group))


def group_message(group: str, message: dict[str, Any]) -> tuple[bytes, bytes]:
    """Channel and payload of what `group_send` publishes."""
    return channel(group), b"M" + msgspec.msgpack.encode(message)


@lru_cache(maxsize=4096)
def _channel(base: str) -> bytes:
    return f"{base}:live".encode()


def _room_seconds() -> int:
    return max(ROOM_SECONDS, int(conf().history_ttl) + 1)  # a room is never forgotten before its history


async def append(entries: Sequence[Draft], **options: Any) -> list[list[bytes]]:
    """`prepare_append`, sent at once over the loop's pipes, for a caller with nothing to send behind it."""
    return await prepare_append(pipes(), entries, **options)()


def prepare_append(
    pipes: Pipes,
    entries: Sequence[Draft],
    *,
    lease: Lease = NO_LEASE,
    cursor: Cursor = NO_CURSOR,
    again: str = "",
    publish: bool = True,
) -> Callable[[], Appending]:
    """Append entries to the histories of their rooms and publish them, then set a cursor.

    That is one atomic script (in a Cluster one for each slot). It is packed now, and sent when what this returns is
    called: when that returns, the command has been sent, so that more can follow in the same write. (In a Cluster
    sending has only begun.)

    The future has the position of each entry in each of its rooms, empty where it was left out as a duplicate, and
    behind these the `refusals`, if there are any: then the cursor has not been moved. It has an empty list when another
    instance holds `lease`. Entries of a source up to `again` were appended before, perhaps not everywhere: a room that
    has nothing of the source leaves out those that are older than itself.

    Or it raises a `redis.RedisError`: then all, some, or nothing was done, and the same call again does what is left.
    """
    if not pipes.topology.spans_keys:
        return lambda: begin(_append_by_slot(pipes, entries, lease, cursor, again=again, publish=publish))
    return pipes.to("").prepare(
        _append, *append_arguments(pipes.topology, entries, lease, cursor, again=again, publish=publish)
    )


def refusals(appended: Sequence[Sequence[bytes]], entries: Sequence[Draft]) -> Sequence[Sequence[bytes]]:
    """The entries that Redis refuses to append to one of their rooms, at any time: the number of each, and why."""
    return appended[len(entries) :]


async def _append_by_slot(
    pipes: Pipes, entries: Sequence[Draft], lease: Lease, cursor: Cursor, *, again: str, publish: bool
) -> list[list[bytes]]:
    """One script a slot, all at once, and the cursor after all of them.

    A bridge that dies half-way, or that does not reach one server, has appended some of them. Repeating the call is
    harmless nevertheless: every room knows the last entry that it took of a source, and the ids that it has had, and
    both are written on the server that has the room.
    """
    if lease[0] and await pipes.to(lease[0]).send("GET", lease[0]) != lease[1].encode():
        return []
    places = [(number, room) for number, entry in enumerate(entries) for room in entry.rooms]
    heaviest = sum([len(entry.tail) for entry in entries])
    at_once = asyncio.Semaphore(max(SLOTS_BYTES // max(heaviest, 1), 1))
    refused: dict[int, list[bytes]] = {}

    async def append_part(part: Sequence[int]) -> Sequence[bytes]:
        of_slot = [
            msgspec.structs.replace(entries[number], rooms=[room for _, room in rooms])
            for number, rooms in groupby((places[place] for place in part), key=itemgetter(0))
        ]
        async with at_once:
            found = await _run(
                pipes,
                _append,
                *append_arguments(pipes.topology, of_slot, NO_LEASE, NO_CURSOR, again=again, publish=publish),
            )
        for place, why in refusals(found, of_slot):
            number = [*dict.fromkeys([places[each][0] for each in part])][int(place)]
            refused[number] = [b"%d" % number, why]
        return [position for positions in found[: len(of_slot)] for position in positions]

    positions = iter(await in_batches([base(group) for _, (group, _) in places], append_part))
    if cursor[0] and not refused:
        await _run(
            pipes,
            _append,
            *append_arguments(pipes.topology, [], NO_LEASE, cursor, again=again, publish=publish),
        )
    return [*[[next(positions) for _ in entry.rooms] for entry in entries], *refused.values()]


def append_arguments(
    topology: Topology,
    entries: Sequence[Draft],
    lease: Lease = NO_LEASE,
    cursor: Cursor = NO_CURSOR,
    *,
    again: str = "",
    publish: bool = True,
    whole: bool = False,
) -> tuple[list[str], list[Argument]]:
    """The keys and arguments of `append.lua`, where the settings come first: `append_settings`.

    With `whole` nothing is done unless all rooms are as they should be; for entries without a source.
    """
    prefix = conf().prefix
    keys: list[str] = []
    arguments: list[Argument] = [
        *append_settings(),
        *lease,
        topology.publish_command if publish else "",
        *cursor,
        key("id", "") if topology.spans_keys else "",
        again,
        "1" if whole else "",
    ]
    for entry in entries:
        exclude = f"{entry.exclude}\0{entry.traceparent}" if entry.traceparent else entry.exclude
        arguments += [len(entry.rooms), entry.source, entry.entry, entry.id, exclude, entry.tail]
        for group, head in entry.rooms:
            keys.append(_base(prefix, group))
            arguments.append(head)
    if cursor[0]:
        keys.append(cursor[0])
    return keys, arguments


def append_settings() -> list[Argument]:
    """What the settings say about histories, as `append.lua` takes it."""
    settings = conf()
    kept = [settings.history_size, int(settings.history_ttl * 1000), settings.history_bytes]
    return [*kept, _room_seconds(), MARKER_SECONDS]


async def ends(groups: Iterable[str], received: Mapping[str, int] = NOTHING_RECEIVED) -> dict[str, int]:
    """The end of each group's room. Raises `redis.RedisError`.

    `received`: the last position of each room that this instance has received. Where Redis has lost it, the history is
    cut: no position from before is known any more, so all listeners of the room learn of the loss, in every instance.
    """
    wanted = list(groups)
    bases = [base(group) for group in wanted]
    topology = pipes().topology

    def ask(part: Sequence[int]) -> Awaitable[Sequence[Any]]:
        settings: list[Argument] = [_room_seconds(), topology.publish_command]
        tails = [received.get(wanted[number], 0) for number in part]
        return _run(pipes(), _ends, [bases[number] for number in part], [*settings, *tails])

    found = await in_batches(bases, ask)
    return {group: int(position) for group, position in zip(wanted, found, strict=True)}


async def after(
    group: str, position: int, most: int, received: Sequence[int] = (), *, reader: tuple[str, int] = ("", 0)
) -> After:
    """What came after a position: their number, and the first of them, up to `most` or about `READ_BYTES`.

    `received`: positions that this instance has received (`ends`). `reader`: the id of a connection, and the position
    at which it was opened; publications that leave it out are not counted.

    Raises `Unrecoverable` when not all of it is known, or `redis.RedisError`.
    """
    command = pipes().topology.publish_command
    end, *known = await _run(
        pipes(), _after, [base(group)], [position, most, READ_BYTES, command, *reader, *received]
    )
    if not known:
        raise Unrecoverable(int(end) if end else (await ends([group]))[group])
    missed, publications = known
    return After(int(end), missed, [unpack(publication) for publication in publications])


def _run(
    pipes: Pipes, script: AsyncScript, keys: Sequence[str], arguments: Sequence[Argument]
) -> Awaitable[Any]:
    return pipes.to(keys[0]).run(script, keys, arguments)
