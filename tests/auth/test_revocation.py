from __future__ import annotations

import time
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisDown

from realtime.auth import grants, revocation
from realtime.auth.issuing import issue
from realtime.auth.verification import verify
from realtime.layers.signals import Signal
from realtime.namespaces.hub_events import ThreadExpel, expel
from realtime.namespaces.portal_events import ThreadGrant, ThreadRevoke, grant, revoke
from realtime.protocol.catalogue import BusContext
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.events import TokenRevoke, UserDisconnect
from realtime.protocol.payloads import Id
from realtime.protocol.principal import Principal
from realtime.redis.client import client, key
from realtime.redis.clock import redis_clock
from tests.inprocess import add, bridging, connected, dead_letters, eventually

pytestmark = pytest.mark.usefixtures("process")


def principal(user_id: str = "7", **claims: object) -> Principal:
    return verify(issue(user_id=user_id, role="attendant", **claims))  # type: ignore[arg-type]


def context(at: float) -> BusContext:
    return BusContext(at=at, order=f"{int(at * 1000):020d}-{0:020d}")


@pytest.fixture
def signals(monkeypatch) -> list[Signal]:
    """What is signalled to the instances."""
    sent: list[Signal] = []

    async def broadcast(signal: Signal) -> None:
        sent.append(signal)

    for module in ("realtime.auth.revocation", "realtime.auth.grants"):
        monkeypatch.setattr(f"{module}.broadcast", broadcast)
    return sent


REVOKED = (CloseCode.REVOKED, "revoked")


# --- token:revoke ------------------------------------------------------------------------------------


DAY = 86400


async def test_revoke_is_remembered_until_the_token_would_have_expired():
    claims = principal(ttl=3 * DAY)
    assert not await revocation.is_revoked(claims)
    async with bridging():
        await add("token:revoke", {"jti": claims.jti, "exp": int(claims.expires_at)})
        await eventually(lambda: revocation.is_revoked(claims))
    assert 3 * DAY - 60 <= await client().ttl(key("revoked", claims.jti)) <= 3 * DAY + 2


@pytest.mark.parametrize("left", [-10, 100])
async def test_revoke_is_remembered_for_as_long_as_a_refresh_token_of_the_same_id_may_live(left: int):
    async with bridging():
        await add("token:revoke", {"jti": "short", "exp": int(time.time()) + left})
        await eventually(lambda: client().exists(key("revoked", "short")))
    assert DAY - 60 <= await client().ttl(key("revoked", "short")) <= DAY + 2


async def test_exp_may_be_any_number():
    """Also one beyond what Redis can count to, or a float can hold: it is remembered for good."""
    tokens = {f"until {exp}": exp for exp in (2.5, 10**15, 2**62, 9 * 10**18, 1e300)}
    async with bridging():
        for jti, exp in tokens.items():
            await add("token:revoke", {"jti": jti, "exp": exp})
        await eventually(lambda: client().exists(key("revoked", jti)))
    assert await client().exists(*(key("revoked", jti) for jti in tokens)) == len(tokens)
    assert await dead_letters() == []


async def test_clock_of_the_bridges_host_decides_nothing(monkeypatch):
    claims = principal(ttl=2 * DAY)
    monkeypatch.setattr("time.time", lambda: claims.expires_at + 3600)
    await revocation.revoke_token(TokenRevoke(jti=claims.jti, exp=claims.expires_at), context(1000.0))
    assert await revocation.is_revoked(claims)
    assert 2 * DAY - 60 <= await client().ttl(key("revoked", claims.jti)) <= 2 * DAY + 2


async def test_revoke_that_is_handled_again_changes_nothing():
    payload = TokenRevoke(jti="again", exp=await revocation.now() + 2 * DAY)
    for _ in range(2):
        await revocation.revoke_token(payload, context(1000.0))
    assert 2 * DAY - 60 <= await client().ttl(key("revoked", "again")) <= 2 * DAY + 2


# --- user:disconnect ---------------------------------------------------------------------------------


async def test_disconnected_user_may_come_back():
    async with bridging():
        async with connected("hub", "7") as one:
            await add("user:disconnect", {"user_id": 7, "namespace": "hub"})
            await one.expect_close()
        async with connected("hub", "7") as again:
            await again.call("heartbeat")
            await again.nothing("error")


async def test_connection_opened_after_the_entry_is_not_concerned():
    """The entry waited in the stream, because no bridge was there."""
    await add("user:disconnect", {"user_id": 7, "namespace": "hub"})
    async with connected("hub", "7") as later, bridging():
        await eventually(lambda: client().exists(key("disconnected", "hub", "7")))
        await later.call("heartbeat")
        await later.nothing("error")


@pytest.mark.parametrize(("opened_after", "leaves"), [(-0.5, True), (0.0, True), (0.001, False)])
async def test_handshake_finds_the_mark_of_a_disconnect_during_it(opened_after: float, leaves: bool):
    at = await revocation.now()
    await client().set(key("disconnected", "hub", "7"), repr(at))
    assert await revocation.must_leave(principal(), "hub", at + opened_after) is leaves


async def test_disconnect_is_remembered_longer_than_any_instance_keeps_its_connections_without_signals():
    async with bridging():
        await add("user:disconnect", {"user_id": 7, "namespace": "portal"})
        await eventually(lambda: client().exists(key("disconnected", "portal", "7")))
    left = await client().ttl(key("disconnected", "portal", "7"))
    assert revocation.MARK_SECONDS - 60 < left <= revocation.MARK_SECONDS == 86400


async def test_older_disconnect_that_is_handled_again_replaces_no_newer_one(signals: list[Signal]):
    payload = UserDisconnect(user_id=Id("7"), namespace="hub")
    for at in (2000.25, 1000.0, 2000.25):
        await revocation.disconnect_user(payload, context(at))
    assert [signal.at for signal in signals] == [2000.25, 2000.25]  # type: ignore[union-attr]
    assert await revocation.must_leave(principal(), "hub", 2000.25)


# --- thread:expel ------------------------------------------------------------------------------------


async def test_expel_is_found_by_an_instance_that_did_not_get_the_signal():
    async with bridging():
        before = await revocation.now()
        await add("thread:expel", {"user_id": 7, "thread_id": "42"})
        await eventually(lambda: client().exists(key("expelled", "hub", "7", "42")))
        after = await revocation.now() + 0.002
    assert await revocation.expelled("hub", "7", {"thread:42": before, "thread:43": before}) == {"thread:42"}
    assert await revocation.expelled("hub", "7", {"thread:42": after}) == set()
    assert await revocation.expelled("hub", "8", {"thread:42": before}) == set()
    assert await revocation.expelled("portal", "7", {"thread:42": before}) == set()
    left = await client().ttl(key("expelled", "hub", "7", "42"))
    assert revocation.MARK_SECONDS - 60 < left <= revocation.MARK_SECONDS


async def test_who_is_in_no_thread_was_expelled_from_none():
    assert await revocation.expelled("hub", "7", {}) == set()


async def test_older_expel_that_is_handled_again_replaces_no_newer_one(signals: list[Signal]):
    payload = ThreadExpel(user_id=Id("7"), thread_id=Id("42"))
    for at in (2000.25, 1000.0, 2000.25):
        await expel(payload, context(at))
    assert [(signal.at, signal.reason) for signal in signals] == [(2000.25, "expelled")] * 2  # type: ignore[union-attr]
    assert await revocation.expelled("hub", "7", {"thread:42": 2000.25}) == {"thread:42"}


# --- thread:revoke -----------------------------------------------------------------------------------


async def test_older_revoke_that_is_handled_again_changes_nothing_after_a_newer_grant(signals: list[Signal]):
    right = {"user_id": Id("9"), "thread_id": Id("42")}
    await revoke(ThreadRevoke(**right), context(1000.0))
    await revoke(ThreadRevoke(**right), context(1000.0))  # a bridge that died does not know that it did
    await grant(ThreadGrant(**right), context(2000.0))
    await revoke(ThreadRevoke(**right), context(1000.0))
    assert [signal.at for signal in signals] == [1000.0, 1000.0]  # type: ignore[union-attr]
    assert await grants.read("portal", "9", "thread:42") is True


async def test_connection_stays_without_an_order():
    assert not await revocation.must_leave(principal(), "hub", await revocation.now())


# --- A clock that was set back: entries get ids of the time before -------------------------------------


async def test_disconnected_user_may_come_back_after_redis_clock_was_set_back(signals: list[Signal]):
    payload = UserDisconnect(user_id=Id("7"), namespace="hub")
    earlier = await revocation.now() + 3600
    await client().set(key("disconnected", "hub", "7"), repr(earlier))
    for at in (earlier + 0.001, earlier + 0.002):
        await revocation.disconnect_user(payload, context(at))
        opened_before, opened_after = await revocation.now() - 60, await revocation.now()
        assert await revocation.must_leave(principal(), "hub", opened_before)
        assert not await revocation.must_leave(principal(), "hub", opened_after)
    assert len(signals) == 2


async def test_expel_concerns_who_is_there_after_redis_clock_was_set_back(signals: list[Signal]):
    """Times do not tell which members entered later: all entries get the same time until the clock has caught up."""
    now = await revocation.now()
    await expel(ThreadExpel(user_id=Id("7"), thread_id=Id("42")), context(now + 3600))
    assert [(signal.at, signal.reason) for signal in signals] == [(0.0, "expelled")]  # type: ignore[union-attr]
    assert await revocation.expelled("hub", "7", {"thread:42": now - 60}) == {"thread:42"}


async def test_room_is_entered_by_the_clock_that_redis_has_now():
    async with connected("hub", "7") as ana:
        redis_clock().set(time.time() + 3600)
        await cut_the_subscription()  # the instance finds what it missed, and reads the clock
        await eventually(lambda: abs(redis_clock().now() - time.time()) < 60)
        await ana.call("join:thread", {"thread_id": "42"})
        async with bridging():
            await add("thread:expel", {"user_id": 7, "thread_id": "42"})
            assert (await ana.expect("room:left"))["data"] == {"room": "thread:42", "reason": "expelled"}


async def test_now_is_the_clock_of_redis():
    assert abs(await revocation.now() - time.time()) < 5


# --- Signals that were lost ----------------------------------------------------------------------------


async def cut_the_subscription() -> None:
    assert await client().client_kill_filter(_type="pubsub")


async def test_disconnect_whose_signal_was_lost_is_found_when_the_subscription_is_back():
    async with connected(user_id="7") as ana, connected(user_id="8") as ben:
        await client().set(key("disconnected", "hub", "7"), repr(time.time() + 60))
        await cut_the_subscription()
        assert (await ana.expect_close())[0] == CloseCode.REVOKED
        await ben.call("heartbeat")


async def test_revoked_thread_whose_signal_was_lost_is_left_when_the_subscription_is_back():
    async with connected("portal", user_id="9", role="customer", threads=["42", "43"]) as client_of_two:
        for thread in ("42", "43"):
            await client_of_two.call("join:thread", {"thread_id": thread})
        await grants.write("portal", "9", "thread:42", granted=False, order="1")
        await cut_the_subscription()
        left = await client_of_two.expect("room:left")
        assert left["data"] == {"room": "thread:42", "reason": "forbidden"}
        await client_of_two.call("typing:start", {"thread_id": "43"})
        await client_of_two.nothing("room:left")


async def test_redis_that_is_away_is_asked_again_later(monkeypatch):
    asked: list[bool] = []
    must_leave = revocation.must_leave

    async def unreliable(*arguments: Any) -> bool:
        asked.append(True)
        if len(asked) == 1:
            raise RedisDown("gone")
        return await must_leave(*arguments)

    async with connected(user_id="7") as ana:
        monkeypatch.setattr(revocation, "must_leave", unreliable)
        await client().set(key("disconnected", "hub", "7"), repr(time.time() + 60))
        await cut_the_subscription()
        assert (await ana.expect_close())[0] == CloseCode.REVOKED
    assert len(asked) == 2
