"""Taking access away: users disconnected by an operator, tokens revoked before they expire.

A revoke writes before it signals, and a handshake joins before it looks: whichever comes first, none slips
through.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from realtime.authentication import Principal, leeway
from realtime.catalogue import BusContext, on_bus
from realtime.control import TokenRevoked, UserDisconnected, broadcast
from realtime.events import TokenRevoke, UserDisconnect
from realtime.redis import client, key, location, mget, run, script
from realtime.together import Together

_TIME = script(b"return redis.call('TIME')")
MARK_SECONDS = 60
"""How long a handshake may be under way when its user is disconnected."""


async def now() -> float:
    """Redis' clock in seconds: the only one that all processes share. Raises `redis.RedisError`."""
    return await _clock.ask(None)


async def is_revoked(principal: Principal) -> bool:
    """Whether the token was revoked. Raises `redis.RedisError`."""
    return bool(await client().exists(key("revoked", principal.jti)))


async def must_leave(principal: Principal, namespace: str, opened_at: float) -> bool:
    """Whether a connection opened at `opened_at` (Redis' clock) was disconnected or its token revoked since."""
    revoked, mark = await _marks.ask(
        (key("revoked", principal.jti), key("disconnected", namespace, principal.user_id))
    )
    return revoked is not None or (mark is not None and float(mark) >= opened_at)


async def _read_clock(askers: Sequence[None]) -> list[float]:
    # In a Cluster that of the server which has the stream: what is on it and what is not are compared.
    seconds, microseconds = await (run(_TIME, [key("stream")]) if location().nodes else client().time())
    return [float(seconds) + float(microseconds) / 1e6] * len(askers)


async def _read_marks(keys: Sequence[tuple[str, str]]) -> list[Marks]:
    found = await mget([key for pair in keys for key in pair])
    return list(zip(found[::2], found[1::2], strict=True))


Marks = tuple[Any, Any]

# Every handshake asks both: in a storm of them, together.
_clock: Together[None, float] = Together(_read_clock)
_marks: Together[tuple[str, str], Marks] = Together(_read_marks)


@on_bus("user:disconnect")
async def disconnect_user(payload: UserDisconnect, context: BusContext) -> None:
    mark = key("disconnected", payload.namespace, payload.user_id)
    await client().set(mark, repr(context.at), ex=MARK_SECONDS)
    await broadcast(
        UserDisconnected(
            namespace=payload.namespace, user_id=payload.user_id, at=context.at, reason=payload.reason
        )
    )


@on_bus("token:revoke")
async def revoke_token(payload: TokenRevoke, context: BusContext) -> None:
    remaining = payload.exp + leeway() - time.time()
    if remaining <= 0:
        return  # expired: it is refused anyway, and its connections have ended
    try:
        await client().set(key("revoked", payload.jti), "1", ex=int(remaining) + 1)
    except ResponseError:  # an expiry beyond what Redis can count to
        await client().set(key("revoked", payload.jti), "1")
    await broadcast(TokenRevoked(jti=payload.jti))
