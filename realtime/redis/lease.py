"""A lease in Redis: at most one holder at a time does a piece of work, and another takes over when it dies."""

from __future__ import annotations

import asyncio

from redis.exceptions import AskError

from realtime.redis.client import client, is_cancelled, key, run, script
from realtime.redis.connection import Argument
from realtime.redis.pipelining import pipes
from realtime.redis.topology import topology
from realtime.tasks.instance import id_for

# The second key keeps the latest term: a holder whose lease has lapsed can tell whether another holder has taken it.
# A Cluster has no second key: a script cannot use two keys while their slot is being moved.
_HOLD = script(
    b"""
    local holder, latest = redis.call('GET', KEYS[1]), KEYS[2] and redis.call('GET', KEYS[2])
    local term = holder or latest or ''
    if string.sub(term, 1, #ARGV[1]) ~= ARGV[1] then term = ARGV[2] end
    -- A lease that lasts longer than one can was given before Redis' clock was set back.
    if holder and holder ~= term and redis.call('PTTL', KEYS[1]) <= tonumber(ARGV[3]) then
      -- A holder of an older version does not write the second key itself.
      if KEYS[2] and latest ~= holder then redis.call('SET', KEYS[2], holder) end
      return false
    end
    redis.call('SET', KEYS[1], term, 'PX', ARGV[3])
    if KEYS[2] then redis.call('SET', KEYS[2], term) end
    return term
    """,
)
_RENEW = script(
    b"""
    local holder = redis.call('GET', KEYS[1]) or KEYS[2] and redis.call('GET', KEYS[2])
    if holder ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return 1
    """,
)
_RELEASE = script(
    b"""
    local holder = redis.call('GET', KEYS[1]) or KEYS[2] and redis.call('GET', KEYS[2])
    if holder ~= ARGV[1] then return 0 end
    return redis.call('DEL', unpack(KEYS))
    """,
)


class Lease:
    """A named lease that lasts for some seconds, and is kept by renewing it.

    A term begins when a holder takes the lease. It ends when that holder releases the lease, or when another holder
    takes it after it has lapsed; in a Cluster, when it lapses. Each term has a unique name, so work of an earlier term
    is not mistaken for work of a later term of the same holder: another holder may have had the lease in between.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.seconds = seconds
        self._key = key("lease", name)
        self._milliseconds = int(seconds * 1000)
        self._prefix = f"{id_for(f'lease {name}')}:"
        """The first part of all terms of this holder."""
        self._attempts = 0
        self._term = ""

    @property
    def _keys(self) -> list[str]:
        return [self._key, f"{self._key}:latest"] if topology().spans_keys else [self._key]

    @property
    def fence(self) -> tuple[str, str]:
        """Key and latest term, for a script that must not run once that term has ended."""
        return self._key, self._term

    async def hold(self) -> bool:
        """Renew the lease, or take it and begin a term; False while another has it. Raises `redis.RedisError`."""
        self._attempts += 1
        arguments: list[Argument] = [self._prefix, f"{self._prefix}{self._attempts}", self._milliseconds]
        # `run` might send the command twice, and a late copy would bring back a term that has ended. So each attempt
        # is sent once and has a term of its own, which may be the one that the next attempt finds.
        try:
            held = await pipes().to(self._key).run(_HOLD, self._keys, arguments)
        except AskError:  # its slot is being moved, and Redis has done nothing
            held = await client().eval(_HOLD.script, 1, self._key, *arguments)  # type: ignore[arg-type]
        if held is not None:
            self._term = held.decode()
        return held is not None

    async def renew(self, term: str) -> bool:
        """Renew the lease, also if it has lapsed; False if the term has ended. Raises `redis.RedisError`."""
        return bool(await run(_RENEW, self._keys, [term, self._milliseconds]))

    async def keep(self) -> None:
        """Renew the lease until its term has ended. Raises `redis.RedisError`."""
        is_held = True
        while is_held and not is_cancelled():
            await asyncio.sleep(self.seconds / 4)
            is_held = await self.renew(self._term)

    async def release(self) -> None:
        """End the term: another holder can have the lease at once. Raises `redis.RedisError`."""
        await run(_RELEASE, self._keys, [self._term])
