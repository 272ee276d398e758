"""A lease in Redis: at most one holder at a time does a piece of work, and another takes over when it dies."""

from __future__ import annotations

import asyncio

from realtime.redis.client import is_cancelled, key, run, script
from realtime.tasks.instance import id_for

_HOLD = script(
    b"""
    local holder = redis.call('GET', KEYS[1])
    -- A lease that lasts longer than one can was given before Redis' clock was set back.
    if holder and holder ~= ARGV[1] and redis.call('PTTL', KEYS[1]) <= tonumber(ARGV[2]) then return 0 end
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return 1
    """,
)
_RELEASE = script(
    b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)


class Lease:
    """A named lease that lasts for some seconds, and is renewed by asking for it again."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        self.holder = id_for(f"lease {name}")

    @property
    def fence(self) -> tuple[str, str]:
        """Key and holder, for a script that must not run for a former holder."""
        return key("lease", self.name), self.holder

    async def hold(self) -> bool:
        """Take or renew the lease; False while another holder has it. Raises `redis.RedisError`."""
        return bool(await run(_HOLD, [self.fence[0]], [self.holder, int(self.seconds * 1000)]))

    async def keep(self) -> None:
        """Renew a lease that is held until another holder has it. Raises `redis.RedisError`."""
        is_held = True
        while is_held and not is_cancelled():
            await asyncio.sleep(self.seconds / 4)
            is_held = await self.hold()

    async def release(self) -> None:
        """Let another holder have it at once. Raises `redis.RedisError`."""
        await run(_RELEASE, [self.fence[0]], [self.holder])
