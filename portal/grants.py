"""Grants and revokes of threads, in Redis: they outlive connections and tokens (`GRANT_TTL`)."""

from __future__ import annotations

from collections.abc import Sequence

from realtime.conf import conf
from realtime.redis import key, mget, run, script
from realtime.together import Together

_WRITE = script(
    b"""
    -- The latest word counts: a bridge that was held up must not bring back an older one.
    local known = redis.call('GET', KEYS[1])
    if not known or known:sub(3) <= ARGV[2] then
      redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
    end
    """,
)


def _key(user_id: str, thread_id: str) -> str:
    return key("grant", user_id, thread_id)


async def write(user_id: str, thread_id: str, *, granted: bool, order: str) -> None:
    """Remember a word on this user and thread, unless a later one (by `order`) is known.

    Raises `redis.RedisError`.
    """
    word = "1" if granted else "0"
    await run(_WRITE, [_key(user_id, thread_id)], [word, order, int(conf().grant_ttl * 1000)])


async def read(user_id: str, thread_id: str) -> bool | None:
    """Granted (True), revoked (False), or no word that still counts. Raises `redis.RedisError`."""
    return await _words.ask(_key(user_id, thread_id))


async def _read(keys: Sequence[str]) -> list[bool | None]:
    return [None if value is None else value.startswith(b"1") for value in await mget(keys)]


_words: Together[str, bool | None] = Together(_read)
"""After an outage everybody joins at once: one round trip for hundreds."""
