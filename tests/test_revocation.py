from __future__ import annotations

import time
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisDown

from portal import grants
from realtime import revocation
from realtime.authentication import Principal, issue, verify
from realtime.closing import CloseCode
from realtime.redis import client, key
from tests.inprocess import add, bearer, bridging, connected, dead_letters, eventually, refusal

pytestmark = pytest.mark.usefixtures("process")


def principal(user_id: str = "7", **claims: object) -> Principal:
    return verify(issue(user_id=user_id, role="attendant", **claims))  # type: ignore[arg-type]


REVOKED = (CloseCode.REVOKED, "revoked")


# --- token:revoke ------------------------------------------------------------------------------------


async def test_revoked_token_closes_its_connections_and_is_refused_from_then_on():
    token = issue(user_id="7", role="attendant")
    claims = verify(token)
    async with bridging(), connected(token=token) as one, connected("hub", "7") as other_token:
        await add("token:revoke", {"jti": claims.jti, "exp": int(claims.expires_at)})
        assert await one.expect_close() == REVOKED
        await other_token.call("heartbeat")
        assert (await refusal("/hub/", headers=bearer(token))).code == "token_invalid"


async def test_revoke_is_remembered_until_the_token_would_have_expired():
    claims = principal(ttl=100)
    async with bridging():
        await add("token:revoke", {"jti": claims.jti, "exp": int(claims.expires_at)})
        await eventually(lambda: revocation.is_revoked(claims))
    assert 95 <= await client().ttl(key("revoked", claims.jti)) <= 102


async def test_revoke_of_an_expired_token_is_not_remembered():
    async with bridging():
        await add("token:revoke", {"jti": "old", "exp": int(time.time()) - 10})
        await add("token:revoke", {"jti": "new", "exp": int(time.time()) + 10})
        await eventually(lambda: client().exists(key("revoked", "new")))
    assert not await client().exists(key("revoked", "old"))


@pytest.mark.parametrize("exp", [2**62, 10**15])
async def test_revoke_of_a_token_that_never_expires_is_remembered_for_good(exp: int):
    async with bridging():
        await add("token:revoke", {"jti": "eternal", "exp": exp})
        await eventually(lambda: client().exists(key("revoked", "eternal")))
    assert await dead_letters() == []


async def test_revoke_of_an_exp_beyond_what_floats_can_hold_does_no_harm():
    async with bridging():
        await add("token:revoke", {"jti": "absurd", "exp": 10**18 * 9})
        await add("token:revoke", {"jti": "next", "exp": int(time.time()) + 10})
        await eventually(lambda: client().exists(key("revoked", "next")))
    assert await client().exists(key("revoked", "absurd"))


async def test_token_is_not_revoked_unless_it_is():
    assert not await revocation.is_revoked(principal())


# --- user:disconnect ---------------------------------------------------------------------------------


async def test_user_is_disconnected_everywhere_in_that_namespace_only():
    async with (
        bridging(),
        connected("hub", "7") as one,
        connected("hub", "7") as two,
        connected("hub", "8") as somebody_else,
        connected("portal", "7") as other_namespace,
    ):
        await add("user:disconnect", {"user_id": 7, "namespace": "hub", "reason": "shift is over"})
        assert await one.expect_close() == (CloseCode.REVOKED, "shift is over")
        assert await two.expect_close() == (CloseCode.REVOKED, "shift is over")
        await somebody_else.call("heartbeat")
        await other_namespace.call("heartbeat")


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


async def test_mark_of_a_disconnect_is_forgotten_after_the_longest_handshake():
    async with bridging():
        await add("user:disconnect", {"user_id": 7, "namespace": "portal"})
        await eventually(lambda: client().exists(key("disconnected", "portal", "7")))
    assert 50 < await client().ttl(key("disconnected", "portal", "7")) <= revocation.MARK_SECONDS


async def test_nobody_must_leave_without_reason():
    assert not await revocation.must_leave(principal(), "hub", await revocation.now())


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
        await grants.write("9", "42", granted=False, order="1")
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
