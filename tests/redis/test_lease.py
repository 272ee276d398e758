from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisDown

from realtime.redis.client import client, key, run
from realtime.redis.lease import Lease
from realtime.redis.pipelining import Pipe
from tests.inprocess import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("process")


async def failed() -> None:
    raise RedisDown("gone")


async def test_holder_keeps_it_and_its_term_by_asking_again():
    one, two = Lease("work", 60), Lease("work", 60)
    assert await one.hold()
    term = one.fence
    assert await one.hold()
    assert one.fence == term
    assert not await two.hold()


async def test_another_takes_over_when_the_holder_dies():
    one, two = Lease("work", 60), Lease("work", 60)
    assert await one.hold()
    await client().pexpire(key("lease", "work"), 50)  # the rest of its time
    assert await eventually(two.hold)
    assert not await one.hold()


async def test_another_takes_over_when_the_holder_dies_and_redis_clock_is_set_back():
    one, two = Lease("work", 60), Lease("work", 60)
    await one.hold()
    await client().pexpire(key("lease", "work"), 3_600_000)
    assert await two.hold()
    assert not await one.hold()


async def test_released_lease_can_be_had_at_once():
    one, two = Lease("work", 60), Lease("work", 60)
    await one.hold()
    await one.release()
    assert await two.hold()


async def test_who_does_not_hold_it_cannot_release_it():
    one, two = Lease("work", 60), Lease("work", 60)
    await one.hold()
    await two.release()
    assert not await two.hold()


async def test_leases_of_other_names_are_other_leases():
    assert await Lease("work", 60).hold()
    assert await Lease("play", 60).hold()


async def test_lease_that_was_lost_meanwhile_is_taken_for_another_term():
    """Even if no other holder has it any more: in between one may have done the work."""
    lease, other = Lease("work", 60), Lease("work", 60)
    await lease.hold()
    term = lease.fence
    await client().delete(key("lease", "work"))
    await other.hold()
    await other.release()
    assert await lease.hold()
    assert lease.fence != term


async def test_lease_that_has_lapsed_is_kept_unless_another_has_had_it():
    lease, other = Lease("work", 0.2), Lease("work", 60)
    await lease.hold()
    term = lease.fence
    keeping = asyncio.create_task(lease.keep())
    for _ in range(3):
        await client().delete(key("lease", "work"))
        await eventually(lambda: client().exists(key("lease", "work")))
    assert not keeping.done()
    assert lease.fence == term
    keeping.cancel()
    await client().delete(key("lease", "work"))
    await other.hold()
    await client().delete(key("lease", "work"))
    await asyncio.wait_for(lease.keep(), PATIENCE)
    assert not await lease.renew(term[1])
    assert not await client().exists(key("lease", "work"))


async def test_term_goes_on_if_no_other_has_followed():
    lease = Lease("work", 60)
    await lease.hold()
    term = lease.fence
    await client().delete(key("lease", "work"))
    assert await lease.hold()
    assert lease.fence == term


async def test_term_that_one_of_an_older_version_has_followed_is_not_renewed():
    """That version does not write down its term; whichever of this one stands by does it."""
    lease, standby = Lease("work", 60), Lease("work", 60)
    await lease.hold()
    await client().set(key("lease", "work"), "older", px=60_000)
    assert not await standby.hold()
    await client().delete(key("lease", "work"))
    assert not await lease.renew(lease.fence[1])


async def test_lease_that_was_released_is_not_renewed_by_a_command_that_comes_late():
    lease = Lease("work", 60)
    await lease.hold()
    await lease.release()
    assert not await lease.renew(lease.fence[1])


async def test_lease_that_was_taken_without_an_answer_is_held_by_the_next_attempt(monkeypatch):
    """The connection is lost just then; a holder that stood by now would wait for itself."""
    lease, other = Lease("work", 60), Lease("work", 60)
    run_command = Pipe.run

    async def unanswered(pipe: Pipe, *command: Any) -> None:
        await run_command(pipe, *command)
        raise RedisDown("gone")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Pipe, "run", unanswered)
            with pytest.raises(RedisDown):
                await lease.hold()
        assert not await other.hold()
        assert await lease.hold()
        assert await client().get(key("lease", "work")) == lease.fence[1].encode()
        await lease.release()


async def test_attempt_that_comes_late_does_not_bring_back_a_term_that_has_ended(monkeypatch):
    """Redis may take the command when it has been given up, and the lease has gone from hand to hand."""
    lease, sent = Lease("work", 60), []
    with monkeypatch.context() as patch:
        patch.setattr(Pipe, "run", lambda pipe, *command: sent.append(command) or failed())
        with pytest.raises(RedisDown):
            await lease.hold()
    assert len(sent) == 1
    assert await lease.hold()
    await lease.release()
    for command in sent:
        await run(*command)
    assert await client().get(key("lease", "work")) not in {None, lease.fence[1].encode()}


async def test_lease_is_kept_until_another_has_it():
    lease = Lease("work", 0.2)
    assert await lease.hold()
    keeping = asyncio.create_task(lease.keep())
    await asyncio.sleep(0.5)
    assert await client().get(key("lease", "work")) == lease.fence[1].encode()
    assert not keeping.done()
    await client().set(key("lease", "work"), "another")
    await asyncio.wait_for(keeping, PATIENCE)


async def test_lease_ends_by_itself():
    began = time.monotonic()
    await Lease("work", 60).hold()
    left = await client().pttl(key("lease", "work"))
    assert 60_000 - 1000 * (time.monotonic() - began) - 1 <= left <= 60_000
