"""A lease in Redis: at most one holder at a time does a piece of work, and another takes over when it dies."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from realtime.redis.client import key, run, script

_HOLD = script(
    b"""
    local holder = redis.call('GET', KEYS[1])
    if holder and holder ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return 1
    """,
)
_RELEASE = script(
    b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)


class Lease:
    """A named lease that lasts for a number of seconds, and is renewed by asking for it again."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        self.holder = uuid4().hex
        self._held_until = 0.0

    @property
    def fence(self) -> tuple[str, str]:
        """Key and holder, for a script that must not run for a former holder."""
        return key("lease", self.name), self.holder

    @property
    def is_fresh(self) -> bool:
        """Whether the lease is held and need not be renewed yet."""
        return asyncio.get_running_loop().time() < self._held_until - self.seconds * 0.75

    async def hold(self) -> bool:
        """Take or renew the lease; False while another holder has it. Raises `redis.RedisError`."""
        if self.is_fresh:
            return True
        now = asyncio.get_running_loop().time()
        held = await run(_HOLD, [key("lease", self.name)], [self.holder, int(self.seconds * 1000)])
        self._held_until = now + self.seconds if held else 0.0
        return bool(held)

    async def release(self) -> None:
        """Give up the lease, so that another holder can have it at once. Raises `redis.RedisError`."""
        self._held_until = 0.0
        await run(_RELEASE, [key("lease", self.name)], [self.holder])
