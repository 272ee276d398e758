"""Taking access away: users disconnected by an operator or taken out of a room, tokens revoked before they expire.

An order is written before it is signalled, and a handshake joins before it looks: whichever comes first, none slips
through. What is written outlives the connections that it may concern, so an instance that a signal did not reach finds
it when it is back. All times are of Redis' clock: no host's own one decides whether an order has an effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from realtime.layers.signals import RoomRevoked, TokenRevoked, UserDisconnected, broadcast
from realtime.protocol.catalogue import BusContext, on_bus
from realtime.protocol.events import RoomExpel, TokenRevoke, UserDisconnect
from realtime.protocol.principal import Principal
from realtime.protocol.rooms import thread_of
from realtime.redis.client import execute, key, mget, run, script, sync_client, time_sync

MARK_SECONDS = 24 * 3600
"""How long it is remembered that a user was disconnected or expelled.

That must be longer than any instance can be without the signals (cut off, or suspended with its whole machine) and
still have the connections that it had before. As this has no bound of its own, an instance that was without them for
more than half of this closes all its connections. Long enough for that to be rare, a day costs about 100 bytes for each
user who was disconnected on it.
"""

_MARK = script(
    b"""
    -- No order is from the future. Its entry may have such an id, as ids never go back when Redis' clock does; then the
    -- mark would concern all that is opened before the clock has caught up.
    local time = redis.call('TIME')
    local now = time[1] + time[2] / 1e6
    local at = math.min(tonumber(ARGV[1]), now)
    -- The latest order counts, also after an older one was handled again.
    local known = redis.call('GET', KEYS[1])
    if known and math.min(tonumber(known), now) > at then return 0 end
    redis.call('SET', KEYS[1], string.format('%.6f', at), 'EX', ARGV[2])
    return 1
    """,
)
_REVOKE = script(
    b"""
    local left = math.max(tonumber(ARGV[1]) - redis.call('TIME')[1], tonumber(ARGV[2]))
    if left > 1e10 then  -- more than Redis can count to, or 300 years
      redis.call('SET', KEYS[1], '1')
    else
      redis.call('SET', KEYS[1], '1', 'EX', string.format('%.0f', math.ceil(left) + 1))
    end
    """,
)


async def now() -> float:
    """Redis' clock in seconds: the only one that all processes share. Raises `redis.RedisError`."""
    # In a Cluster that of the server which has the stream: what is on it and what is not are compared.
    seconds, microseconds = await execute("TIME", at=key("stream"))
    return float(seconds) + float(microseconds) / 1e6


async def is_revoked(principal: Principal) -> bool:
    """Whether the token was revoked. Raises `redis.RedisError`."""
    return bool(await execute("EXISTS", _revoked_key(principal.jti)))


def is_token_revoked(jti: str) -> bool:
    """The same for synchronous code, also of a refresh token."""
    return bool(sync_client().exists(_revoked_key(jti)))


def disconnected_for(namespace: str, user_id: str) -> float | None:
    """How long ago the user was last disconnected, in seconds; None: not for `MARK_SECONDS`.

    For synchronous code. Raises `redis.RedisError`.
    """
    mark: Any = sync_client().get(_disconnected_key(namespace, user_id))
    return None if mark is None else time_sync() - float(mark)


def _revoked_key(jti: str) -> str:
    return key("revoked", jti)


def _disconnected_key(namespace: str, user_id: str) -> str:
    return key("disconnected", namespace, user_id)


def marks_of(principal: Principal, namespace: str) -> tuple[str, str]:
    """The keys of what may end a connection: that its token was revoked, and when its user was last disconnected."""
    return _revoked_key(principal.jti), _disconnected_key(namespace, principal.user_id)


async def must_leave(principal: Principal, namespace: str, opened_at: float) -> bool:
    """Whether a connection opened at `opened_at` (Redis' clock) was disconnected or its token revoked since."""
    revoked, mark = await mget(marks_of(principal, namespace))
    return revoked is not None or (mark is not None and float(mark) >= opened_at)


async def expelled(namespace: str, user_id: str, rooms: Mapping[str, float]) -> set[str]:
    """From which of these rooms the user was expelled since they entered it (Redis' clock, in seconds).

    One round trip for all of them. Raises `redis.RedisError`.
    """
    if not rooms:
        return set()
    marks = await mget([_expelled_key(namespace, user_id, room) for room in rooms])
    return {
        room
        for (room, entered_at), mark in zip(rooms.items(), marks, strict=True)
        if mark is not None and float(mark) >= entered_at
    }


async def expel(namespace: str, user_id: str, room: str, at: float) -> None:
    """Take a user out of a room that they entered before `at` (Redis' clock, in seconds). Raises `redis.RedisError`."""
    if await _mark(_expelled_key(namespace, user_id, room), at):
        if at > await now():
            at = 0.0  # the clock was set back: no time tells any more who was there before
        await broadcast(
            RoomRevoked(user_id=user_id, room=room, namespace=namespace, reason="expelled", at=at)
        )


def _expelled_key(namespace: str, user_id: str, room: str) -> str:
    """With the room's kind unless it is a thread: threads were the only rooms before version 0.2."""
    return key("expelled", namespace, user_id, thread_of(room) or room)


async def _mark(name: str, at: float) -> bool:
    return bool(await run(_MARK, [name], [repr(at), MARK_SECONDS]))


@on_bus("room:expel", is_order=True)
async def expel_from_room(payload: RoomExpel, context: BusContext) -> None:
    await expel(payload.namespace, payload.user_id, payload.room, context.at)


@on_bus("user:disconnect", is_order=True)
async def disconnect_user(payload: UserDisconnect, context: BusContext) -> None:
    # A later order concerns all that an older one did.
    if await _mark(_disconnected_key(payload.namespace, payload.user_id), context.at):
        await broadcast(
            UserDisconnected(
                namespace=payload.namespace, user_id=payload.user_id, at=context.at, reason=payload.reason
            )
        )


@on_bus("token:revoke", is_order=True)
async def revoke_token(payload: TokenRevoke, context: BusContext) -> None:
    from realtime.auth.verification import leeway  # noqa: PLC0415  (PyJWT, which a publisher does without)

    # Kept for the refresh token of the same id, and where a clock is behind, also when the access token has expired.
    jti = str(payload.jti)
    await run(_REVOKE, [_revoked_key(jti)], [repr(float(payload.exp + leeway())), MARK_SECONDS])
    await broadcast(TokenRevoked(jti=jti))
