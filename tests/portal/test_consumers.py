from __future__ import annotations

import time

import pytest

from realtime.auth import grants
from realtime.auth.issuing import issue
from realtime.protocol.principal import Principal
from realtime.redis.client import client, key
from tests.inprocess import add, bridging, connected, eventually

pytestmark = pytest.mark.usefixtures("process")


# --- Own threads -------------------------------------------------------------------------------------


async def test_customer_may_join_the_threads_of_the_token_only():
    async with connected("portal", "9", threads=["42"]) as customer:
        assert (await customer.call("join:thread", {"thread_id": 42}))["room"] == "thread:42"
        assert (await customer.refused("join:thread", {"thread_id": 43}))["code"] == "forbidden"


async def test_nothing_is_kept_of_a_room_that_a_customer_may_not_see():
    async with connected("portal", "9", threads=["42"]) as customer:
        await customer.refused("join:thread", {"thread_id": "foreign"})
        await customer.call("resume", {"rooms": {f"thread:foreign{number}": "1" for number in range(50)}})
        assert [found async for found in client().scan_iter(match=key("*foreign*"), count=1000)] == []


async def test_customer_is_in_no_room_but_their_own():
    async with connected("portal", "9", groups=["attendants"]) as customer:
        assert set(customer.ready["rooms"]) == {"user:9"}


@pytest.mark.parametrize("event", ["presence:online", "presence:away", "presence:offline"])
async def test_presence_is_not_for_the_portal(event: str):
    async with connected("portal") as customer:
        assert (await customer.refused(event))["code"] == "forbidden"


async def test_hubs_user_of_the_same_id_is_another_user():
    async with bridging(), connected("portal", "7") as customer, connected("hub", "7") as attendant:
        await add("user:notification", {"user_id": 7})
        await attendant.expect("user:notification")
        await customer.nothing("user:notification")


async def no_thread(principal: Principal, thread_id: str) -> bool:
    return False


async def test_policy_is_pluggable(settings):
    settings.REALTIME = {**settings.REALTIME, "PORTAL_THREAD_POLICY": "tests.portal.test_consumers.no_thread"}
    async with connected("portal", "9", threads=["42"]) as customer:
        assert (await customer.refused("join:thread", {"thread_id": 42}))["code"] == "forbidden"


# --- Grants ------------------------------------------------------------------------------------------


async def granted(thread_id: str) -> bool | None:
    return await grants.read("portal", "9", f"thread:{thread_id}")


async def revoked() -> bool:
    return await granted("42") is False


async def test_accepted_chat_grants_its_thread_and_reaches_its_customer():
    async with bridging(), connected("portal", "9") as customer:
        await add("chat:accepted", {"thread_id": 42, "attendant_id": 7, "user_id": 9})
        frame = await customer.expect("chat:accepted")
        assert frame["room"] == "user:9"
        assert frame["data"] == {"thread_id": "42", "attendant_id": "7", "user_id": "9"}
        await customer.call("join:thread", {"thread_id": 42})


async def test_accepted_chat_without_a_user_grants_nothing():
    async with bridging(), connected("portal", "9") as customer, connected("hub", "7") as attendant:
        await attendant.call("join:thread", {"thread_id": 42})
        await add("chat:accepted", {"thread_id": 42, "attendant_id": 7})
        await attendant.expect("chat:accepted")
        assert (await customer.refused("join:thread", {"thread_id": 42}))["code"] == "forbidden"


async def test_revoke_beats_the_claim_until_a_later_grant():
    async with bridging(), connected("portal", "9", threads=["42"]) as customer:
        await add("thread:revoke", {"user_id": 9, "thread_id": 42})

        await eventually(revoked)
        assert (await customer.refused("join:thread", {"thread_id": 42}))["code"] == "forbidden"
        await add("thread:grant", {"user_id": 9, "thread_id": 42})
        await eventually(lambda: granted("42"))
        await customer.call("join:thread", {"thread_id": 42})


async def test_revoke_beats_the_claim_of_a_fresh_token():
    async with bridging(), connected("portal", "9") as customer:
        await grants.write("portal", "9", "thread:42", granted=False, order="1")
        await customer.call("auth:refresh", {"token": issue(user_id="9", role="customer", threads=["42"])})
        assert (await customer.refused("join:thread", {"thread_id": 42}))["code"] == "forbidden"


async def test_revoke_of_a_room_that_the_customer_is_not_in_is_not_announced():
    async with bridging(), connected("portal", "9", threads=["42"]) as customer:
        await add("thread:revoke", {"user_id": 9, "thread_id": 42})

        await eventually(revoked)
        await customer.nothing("room:left")


async def test_grants_and_revokes_are_remembered_for_the_grant_ttl(settings):
    settings.REALTIME = {**settings.REALTIME, "GRANT_TTL": 100.5}
    for thread, allowed in (("42", True), ("43", False)):
        began = time.monotonic()
        await grants.write("portal", "9", f"thread:{thread}", granted=allowed, order="1")
        left = await client().pttl(key("grant", "9", thread))
        assert 100_500 - 1000 * (time.monotonic() - began) - 1 <= left <= 100_500


async def test_reading_grants_tells_what_is_known():
    await grants.write("portal", "9", "thread:42", granted=True, order="1")
    await grants.write("portal", "9", "thread:43", granted=False, order="1")
    assert [await granted(thread) for thread in ("42", "43", "44")] == [True, False, None]


async def test_word_that_comes_late_does_not_undo_a_later_one():
    await grants.write("portal", "9", "thread:42", granted=True, order="2")
    await grants.write("portal", "9", "thread:42", granted=False, order="1")
    assert await granted("42") is True
    await grants.write("portal", "9", "thread:42", granted=False, order="3")
    assert await granted("42") is False
