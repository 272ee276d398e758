"""A lease in Redis: at most one holder at a time does a piece of work, and another takes over when it dies."""

from __future__ import annotations

import asyncio

from realtime.redis.client import is_cancelled, key, run, script
from realtime.redis.pipelining import pipes
from realtime.tasks.instance import id_for

_HOLD = script(
    b"""
    if redis.call('GET', KEYS[1]) == ARGV[1] then
      redis.call('PEXPIRE', KEYS[1], ARGV[3])
      return ARGV[1]
    end
    -- A lease that lasts longer than one can was given before Redis' clock was set back.
    if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('PTTL', KEYS[1]) <= tonumber(ARGV[3]) then return false end
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    redis.call('SET', KEYS[2], ARGV[2])
    return ARGV[2]
    """,
)
_RENEW = script(
    b"""
    if (redis.call('GET', KEYS[1]) or redis.call('GET', KEYS[2])) ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return 1
    """,
)
_RELEASE = script(
    b"""
    if (redis.call('GET', KEYS[1]) or redis.call('GET', KEYS[2])) ~= ARGV[1] then return 0 end
    return redis.call('DEL', KEYS[1], KEYS[2])
    """,
)


class Lease:
    """A named lease that lasts for some seconds, and is kept by renewing it.

    A term lasts from when the lease is taken until it is released, or another holder takes what has lapsed. Its name is
    no other term's. So what was begun in one is not taken for what the same holder does in a later one, when others may
    have held the lease in between.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.seconds = seconds
        self._key = key("lease", name)
        # The second has the latest term: whether another followed one that lapsed. (In a Cluster: the same slot.)
        self._keys = [self._key, key("lease", f"{{{self._key}}}:latest")]
        self._milliseconds = int(seconds * 1000)
        self._id = id_for(f"lease {name}")
        self._attempts = 0
        self._term = ""
        self._renewed_at = 0.0

    @property
    def fence(self) -> tuple[str, str]:
        """Key and latest term, for a script that must not run once that term has ended."""
        return self._key, self._term

    async def hold(self) -> bool:
        """Renew the lease, or take it and begin a term; False while another has it. Raises `redis.RedisError`."""
        self._attempts += 1
        self._renewed_at = asyncio.get_running_loop().time()
        term = f"{self._id}:{self._attempts}"
        # Not by `run`, which may send it twice: a command that comes late must not bring back a term that has ended.
        # Of an attempt that fails the term is never used.
        held = await pipes().to(self._key).run(_HOLD, self._keys, [self._term, term, self._milliseconds])
        if held is not None:
            self._term = held.decode()
        return held is not None

    async def renew(self, term: str) -> bool:
        """Renew the lease, also if it has lapsed; False if the term has ended. Raises `redis.RedisError`."""
        self._renewed_at = asyncio.get_running_loop().time()
        return bool(await run(_RENEW, self._keys, [term, self._milliseconds]))

    @property
    def may_have_lapsed(self) -> bool:
        """Whether it was not renewed in time, as far as this process knows."""
        return asyncio.get_running_loop().time() - self._renewed_at > self.seconds / 2

    async def keep(self) -> None:
        """Renew the lease until its term has ended. Raises `redis.RedisError`."""
        is_held = True
        while is_held and not is_cancelled():
            await asyncio.sleep(self.seconds / 4)
            is_held = await self.renew(self._term)

    async def release(self) -> None:
        """End the term: another holder can have the lease at once. Raises `redis.RedisError`."""
        await run(_RELEASE, self._keys, [self._term])
