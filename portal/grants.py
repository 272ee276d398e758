"""Grants and revokes of threads, in Redis: they outlive connections and tokens (`GRANT_TTL`)."""

from __future__ import annotations

from realtime.conf import conf
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


def _key(user_id: str, thread_id: str) -> str:
    return key("grant", user_id, thread_id)


async def write(user_id: str, thread_id: str, *, granted: bool, order: str) -> bool:
    """Remember a word on this user and thread, unless a later one (by `order`) is known.

    Returns whether this word counts; said again, it still does. Raises `redis.RedisError`.
    """
    word = "1" if granted else "0"
    return bool(await run(_WRITE, [_key(user_id, thread_id)], [word, order, int(conf().grant_ttl * 1000)]))


async def read(user_id: str, thread_id: str) -> bool | None:
    """Granted (True), revoked (False), or no word that still counts. Raises `redis.RedisError`."""
    word = await execute("GET", _key(user_id, thread_id))
    return None if word is None else word.startswith(b"1")
