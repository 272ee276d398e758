"""Everything in this process, on a simulated Redis."""

from __future__ import annotations

import asyncio
import time

import pytest

from realtime.auth.issuing import issue
from realtime.client import CallFailed, Denied
from realtime.publisher import apublish, online, publish
from realtime.testing import in_memory, issue_token
from realtime.testing.memory import InMemory

pytestmark = pytest.mark.usefixtures("without_outbox")


@pytest.fixture(scope="module")
def system():
    with in_memory() as running:
        yield running


def messages(count: int, thread: str) -> None:
    for number in range(count):
        publish("thread:message", {"thread_id": thread, "message_id": number})


def test_events_arrive_in_order_in_both_namespaces(system: InMemory):
    ana = system.client.sync(user=1, role="attendant")
    customer = system.client.sync(user=2, role="customer", threads=["order"])
    for client in (ana, customer):
        client.call("join:thread", {"thread_id": "order"})
    messages(20, "order")
    for client in (ana, customer):
        found = [client.expect("thread:message") for _ in range(20)]
        assert [frame.data["message_id"] for frame in found] == [str(number) for number in range(20)]
        assert {frame.room for frame in found} == {"thread:order"}


def test_what_was_missed_is_recovered(system: InMemory):
    ana = system.client.sync(user=3, role="attendant")
    offset = ana.call("join:thread", {"thread_id": "missed"})["offset"]
    ana.close()
    messages(3, "missed")
    again = system.client.sync(user=3, role="attendant")
    answer = again.call("resume", {"rooms": {"thread:missed": offset}})
    assert answer["rooms"]["thread:missed"]["recovered"] is True
    assert [again.expect("thread:message").data["message_id"] for _ in range(3)] == ["0", "1", "2"]


def test_excluded_connection_and_message_published_twice(system: InMemory):
    ana, other = (system.client.sync(user=4, role="attendant") for _ in range(2))
    publish("user:notification", {"user_id": 4, "n": 1}, exclude=ana.connection_id)
    for _ in range(2):
        publish("user:notification", {"user_id": 4, "n": 2}, id="twice")
    publish("user:notification", {"user_id": 4, "n": 3})
    assert [ana.expect("user:notification").data["n"] for _ in range(2)] == [2, 3]
    assert [other.expect("user:notification").data["n"] for _ in range(3)] == [1, 2, 3]


def test_presence_follows_what_users_do(system: InMemory):
    watcher = system.client.sync(user="watcher", role="admin", groups=["sales"])
    ana = system.client.sync(user="ana", role="attendant", groups=["sales"], name="Ana")
    watcher.expect("attendant:online", user_id="ana", name="Ana")
    assert online("sales") == ["ana"]
    ana.call("presence:away")
    watcher.expect("attendant:away", user_id="ana")
    assert online("sales") == []
    ana.send("presence:offline")
    watcher.expect("attendant:offline", user_id="ana")
    assert ana.expect_close()[0] == 1000


def test_orders_close_connections_and_rights_are_kept(system: InMemory):
    customer = system.client.sync(user=5, role="customer", threads=[1])
    with pytest.raises(CallFailed, match="forbidden"):
        customer.call("join:thread", {"thread_id": 2})
    publish("thread:grant", {"user_id": 5, "thread_id": 2})
    publish("chat:accepted", {"thread_id": 2, "attendant_id": 1, "user_id": 5})
    customer.expect("chat:accepted")
    customer.call("join:thread", {"thread_id": 2})
    publish("thread:revoke", {"user_id": 5, "thread_id": 2})
    customer.expect("room:left", room="thread:2", reason="forbidden")
    publish("user:disconnect", {"user_id": 5, "namespace": "portal"})
    assert customer.expect_close()[0] >= 4000


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"user": 1, "role": "attendant", "ttl": -60}, "token_expired"),
        ({"namespace": "hub", "token": "nonsense"}, "token_invalid"),
        ({"user": 1, "role": "customer", "namespace": "hub"}, "forbidden_role"),
    ],
)
def test_refused_handshake_says_why(system: InMemory, arguments, reason: str):
    with pytest.raises(Denied) as caught:
        system.client.sync(**arguments)
    assert caught.value.reason.startswith(reason)
    assert caught.value.code in {401, 403}


async def test_several_clients_wait_at_the_same_time(system: InMemory):
    clients = await asyncio.gather(*[system.client(user=f"u{n}", role="attendant") for n in range(5)])
    waiting = [asyncio.create_task(client.expect("queue:new", item_id=1)) for client in clients]
    await apublish("queue:new", {"item_id": 1})
    assert len(await asyncio.gather(*waiting)) == 5
    async with clients[0] as client:
        await client.expect_nothing("queue:new")


def test_event_loop_may_be_any(system: InMemory):
    async def hear() -> str:
        client = await system.client(user="loop", role="attendant")
        await apublish("user:notification", {"user_id": "loop", "n": 1})
        return (await client.expect("user:notification", n=1)).event

    assert [asyncio.run(hear()) for _ in range(2)] == ["user:notification"] * 2


def test_token_is_used_as_it_is(system: InMemory):
    client = system.client.sync(token=issue(user_id="9", role="admin"), namespace="hub")
    assert client.ready["user_id"] == "9"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "expected user and role, or token and namespace"),
        ({"user": 1}, "expected user and role"),
        ({"token": "x"}, "name the namespace"),
        ({"token": "x", "namespace": "hub", "user": 1}, "no claims"),
    ],
)
def test_connecting_with_too_little_says_what_is_expected(system: InMemory, arguments, text: str):
    with pytest.raises(TypeError, match=text):
        system.client.sync(**arguments)


def test_role_without_a_namespace_of_its_own_says_so(system: InMemory):
    with pytest.raises(ValueError, match="the role 'root' in, but none does: name it"):
        system.client.sync(user=1, role="root")


def test_claims_of_the_token_are_those_given():
    import jwt

    claims = jwt.decode(
        issue_token(user=7, role="attendant", threads=[42], tenant="acme", name="Ana"),
        options={"verify_signature": False},
    )
    assert (claims["user_id"], claims["threads"], claims["tenant"]) == ("7", ["42"], "acme")
    assert "groups" not in claims


def test_second_system_at_the_same_time_is_refused(system: InMemory):
    with pytest.raises(RuntimeError, match="is running already"), in_memory():
        pass
    publish("queue:updated", {})


# --- What fails --------------------------------------------------------------------------------------


def failure(call, *args, **kwargs) -> str:
    with pytest.raises(AssertionError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_event_that_does_not_come_is_told_with_what_came(system: InMemory):
    ana = system.client.sync(user="waiting", role="attendant", groups=[])
    publish("user:notification", {"user_id": "waiting", "n": 1})
    ana.expect("user:notification", n=1)
    publish("user:notification", {"user_id": "waiting", "n": 2})
    text = failure(ana.expect, "user:notification", n=3, timeout=1)
    assert text.startswith("user:notification with n=3 did not come within 1 s.\n")
    assert "The nearest user:notification: n is 2, expected 3.\n" in text
    assert '1. user:notification in user:waiting {"user_id": "waiting", "n": 2}' in text
    assert "user:notification in user:waiting" in failure(ana.expect_nothing, "user:notification")
    assert "is open after 0.1 s" in failure(ana.expect_close, timeout=0.1)


def test_event_of_a_closed_connection_is_not_waited_for(system: InMemory):
    ana = system.client.sync(user="closed", role="attendant")
    ana.send("presence:offline")
    began = time.monotonic()
    assert "the connection was closed with 1000" in failure(ana.expect, "thread:message", timeout=600)
    assert time.monotonic() - began < 300
