"""What was granted and revoked over the bus, room by room: it outlives connections and tokens (`GRANT_TTL`).

It counts where a namespace's policy asks for it:

    async def own_boards(principal: Principal, board_id: str) -> bool:
        said = await grants.read("ops", principal.user_id, f"board:{board_id}")
        return board_id in principal.claims["boards"] if said is None else said
"""

from __future__ import annotations

from realtime.conf import conf
from realtime.layers.signals import RoomRevoked, broadcast
from realtime.protocol.catalogue import BusContext, on_bus
from realtime.protocol.events import RoomGrant, RoomRevoke
from realtime.protocol.namespaces import namespaces
from realtime.protocol.rooms import thread_of
from realtime.redis.client import execute, key, run, script

_WRITE = script(
    b"""
    -- The latest word counts: a bridge that was held up must not bring back an older one.
    local known = redis.call('GET', KEYS[1])
    if known and known:sub(3) > ARGV[2] then return 0 end
    redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
    return 1
    """,
)


def _key(namespace: str, user_id: str, room: str) -> str:
    thread_id = thread_of(room)
    if thread_id and namespaces()[namespace].has_unnamed_grants:
        return key("grant", user_id, thread_id)
    return key("grant", namespace, user_id, room)


async def write(namespace: str, user_id: str, room: str, *, granted: bool, order: str) -> bool:
    """Remember a word on this user and room, unless a later one (by `order`) is known.

    Returns whether this word counts; said again, it still does. Raises `redis.RedisError`.
    """
    word = "1" if granted else "0"
    arguments = [word, order, int(conf().grant_ttl * 1000)]
    return bool(await run(_WRITE, [_key(namespace, user_id, room)], arguments))


async def read(namespace: str, user_id: str, room: str) -> bool | None:
    """Granted (True), revoked (False), or no word that still counts. Raises `redis.RedisError`."""
    word = await execute("GET", _key(namespace, user_id, room))
    return None if word is None else word.startswith(b"1")


async def grant(namespace: str, user_id: str, room: str, context: BusContext) -> None:
    """Let a user enter a room. Raises `redis.RedisError`."""
    await write(namespace, user_id, room, granted=True, order=context.order)


async def revoke(namespace: str, user_id: str, room: str, context: BusContext) -> None:
    """Take a user out of a room, and the right to enter it. Raises `redis.RedisError`."""
    # Written before it is signalled: a connection that joins in between finds the revoke.
    if await write(namespace, user_id, room, granted=False, order=context.order):
        await broadcast(RoomRevoked(user_id=user_id, room=room, namespace=namespace, at=context.at))


@on_bus("room:grant", is_order=True)
async def grant_room(payload: RoomGrant, context: BusContext) -> None:
    await grant(payload.namespace, payload.user_id, payload.room, context)


@on_bus("room:revoke", is_order=True)
async def revoke_room(payload: RoomRevoke, context: BusContext) -> None:
    await revoke(payload.namespace, payload.user_id, payload.room, context)
