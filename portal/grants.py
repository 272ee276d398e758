"""Grants and revokes of threads, in Redis: they outlive connections and tokens (`GRANT_TTL`)."""

from __future__ import annotations

from collections.abc import Sequence

from realtime.conf import conf
from realtime.redis import client, key


def _key(user_id: str, thread_id: str) -> str:
    return key("grant", user_id, thread_id)


async def write(user_id: str, thread_id: str, *, granted: bool) -> None:
    """Remember the latest word on this user and thread. Raises `redis.RedisError`."""
    await client().set(_key(user_id, thread_id), "1" if granted else "0", px=int(conf().grant_ttl * 1000))


async def read(user_id: str, threads: Sequence[str]) -> dict[str, bool]:
    """The threads with a grant (True) or revoke (False) that still counts. Raises `redis.RedisError`."""
    if not threads:
        return {}
    values = await client().mget([_key(user_id, thread) for thread in threads])
    return {thread: value == b"1" for thread, value in zip(threads, values, strict=True) if value is not None}
