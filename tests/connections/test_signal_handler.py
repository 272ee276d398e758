"""What an instance does on a signal, and after it may have missed some."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from channels.layers import get_channel_layer
from redis.exceptions import ConnectionError as RedisDown

from realtime.auth.revocation import MARK_SECONDS
from realtime.connections import signal_handler
from realtime.connections.registry import ConnectionRegistry
from realtime.connections.signal_handler import REVIEW_BATCH
from realtime.layers.signals import PresenceChanged, RoomRevoked, TokenRevoked, UserDisconnected
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.rooms import CONTROL_GROUP
from realtime.redis.client import client
from tests.connections.support import Connection, enter, tell
from tests.inprocess import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("process")


# --- Signals -----------------------------------------------------------------------------------------


async def test_disconnected_user_leaves_with_the_operators_reason(registry: ConnectionRegistry):
    older, same, newer = (Connection(f"c{at}", at=at) for at in (99.0, 100.0, 101.0))
    other_namespace = Connection("p", namespace="portal", at=99.0)
    enter(registry, older, same, newer, other_namespace)
    await tell(registry, UserDisconnected(namespace="hub", user_id="7", at=100.0, reason="shift is over"))
    orders = [("terminate", (CloseCode.REVOKED, "shift is over"))]
    assert (older.orders, same.orders) == (orders, orders)
    assert (newer.orders, other_namespace.orders) == ([], [])


async def test_revoked_token_ends_what_it_opened_and_nothing_else(registry: ConnectionRegistry):
    theirs, other = Connection("c1", jti="j1"), Connection("c2", jti="j2")
    enter(registry, theirs, other)
    await tell(registry, TokenRevoked(jti="j1"))
    assert theirs.orders == [("terminate", (CloseCode.REVOKED, ""))]
    assert other.orders == []


async def test_revoked_token_no_longer_ends_a_connection_that_goes_on_with_another(
    registry: ConnectionRegistry,
):
    renewed, stays = Connection("c1", jti="j1"), Connection("c2", jti="j1")
    enter(registry, renewed, stays)
    renewed.principal = type("Principal", (), {"jti": "j2"})
    registry.refreshed(renewed, "j1")
    await tell(registry, TokenRevoked(jti="j1"))
    assert (len(renewed.orders), len(stays.orders)) == (0, 1)
    await tell(registry, TokenRevoked(jti="j2"))
    assert (len(renewed.orders), len(stays.orders)) == (1, 1)
    registry.remove(renewed)
    registry.remove(stays)
    assert not [*registry.connections_with("j1"), *registry.connections_with("j2")]


async def test_connection_that_fails_to_end_is_not_the_others_problem(registry: ConnectionRegistry, caplog):
    before, broken, after = (Connection(f"c{n}", jti="j1") for n in range(3))
    broken.terminate = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    enter(registry, before, broken, after)
    for signal in (
        TokenRevoked(jti="j1"),
        UserDisconnected(namespace="hub", user_id="7", at=100.0, reason=""),
    ):
        await tell(registry, signal)
        assert (len(before.orders), len(after.orders)) == (1, 1)
        before.orders.clear()
        after.orders.clear()
    assert "signal not applied" in caplog.text


# --- Orders that may have been missed ------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_handler, "REVIEW_PAUSE", 0.01)


@pytest.mark.usefixtures("quick")
async def test_rights_are_reviewed_until_redis_has_answered_for_every_connection(
    registry: ConnectionRegistry, caplog
):
    connections = [Connection(f"c{n}") for n in range(REVIEW_BATCH * 2 + 1)]
    for n, connection in enumerate(connections):
        connection.reviews = [RedisDown("away")] * (n % 3)
        registry.add(connection)
    await registry.signals.on_missed(1.0)
    assert [connection.reviewed for connection in connections] == [n % 3 + 1 for n in range(len(connections))]
    assert not any(connection.orders for connection in connections)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", ["fails", "does not answer", "cannot be reached"])
async def test_connection_whose_rights_cannot_be_known_is_closed_and_holds_up_the_others_for_a_while_only(
    registry: ConnectionRegistry, monkeypatch, caplog, how: str
):
    async def review() -> None:
        if how == "does not answer":
            await asyncio.Event().wait()
        raise ZeroDivisionError if how == "fails" else ConnectionRefusedError

    monkeypatch.setattr(signal_handler, "REVIEW_SECONDS", PATIENCE if how == "fails" else 0.1)
    fails, fine = Connection("c1"), Connection("c2")
    fails.review = review  # type: ignore[method-assign]
    enter(registry, fails, fine)
    await asyncio.wait_for(registry.signals.on_missed(1.0), PATIENCE)
    assert fails.orders == [("terminate", (CloseCode.INTERNAL_ERROR, ""))]
    assert fine.orders == []
    assert "rights not known" in caplog.text


@pytest.mark.usefixtures("quick")
async def test_redis_that_does_not_answer_is_waited_for_however_long_that_takes(
    registry: ConnectionRegistry, monkeypatch
):
    make, limits, ends = asyncio.timeout, [], []

    def timeout(seconds: float) -> asyncio.Timeout:
        limit = make(seconds)
        if seconds == signal_handler.REVIEW_SECONDS:
            limits.append(limit)
        return limit

    async def review() -> None:
        ends.append(limits[-1].when())
        if len(ends) < 5:
            raise RedisDown("away")

    monkeypatch.setattr(asyncio, "timeout", timeout)
    connection = Connection("c1")
    connection.review = review  # type: ignore[method-assign]
    registry.add(connection)
    await registry.signals.on_missed(1.0)
    assert ends == sorted({*ends})  # each attempt that Redis fails moves the end
    assert len(ends) == 5
    assert connection.orders == []


@pytest.mark.usefixtures("quick")
async def test_connection_that_ends_meanwhile_is_not_waited_for(registry: ConnectionRegistry):
    gone = Connection("c1")
    gone.reviews = [RedisDown("away")] * 1_000_000
    registry.add(gone)
    reviewing = asyncio.create_task(registry.signals.on_missed(1.0))
    await eventually(lambda: gone.reviewed)
    registry.remove(gone)
    await asyncio.wait_for(reviewing, PATIENCE)


@pytest.mark.parametrize("seconds", [0.0, MARK_SECONDS / 2, MARK_SECONDS / 2 + 0.1, 10_000.0])
async def test_after_a_loss_longer_than_orders_are_remembered_all_begin_anew(
    registry: ConnectionRegistry, seconds: float
):
    connections = [Connection(f"c{n}") for n in range(3)]
    enter(registry, *connections)
    await registry.signals.on_missed(seconds)
    is_long = seconds > MARK_SECONDS / 2
    orders = [("terminate", (CloseCode.RESTARTING, ""))] if is_long else []
    assert all(connection.orders == orders for connection in connections)
    assert all(connection.reviewed == (not is_long) for connection in connections)


async def test_every_connection_is_reviewed_after_a_lost_subscription(registry: ConnectionRegistry):
    theirs = Connection("c1")
    registry.add(theirs)
    await client().client_kill_filter(_type="pubsub")
    await eventually(lambda: theirs.reviewed)
    await registry.probe(5)


async def test_revoked_thread_is_left_by_that_portal_user_only(registry: ConnectionRegistry):
    theirs, hub_user = Connection("c1", namespace="portal"), Connection("c2", namespace="hub")
    other = Connection("c3", user_id="8", namespace="portal")
    enter(registry, theirs, hub_user, other)
    await tell(registry, RoomRevoked(namespace="portal", user_id="7", room="thread:42"))
    assert theirs.orders == [("expel", ("thread:42", "forbidden"))]
    assert (hub_user.orders, other.orders) == ([], [])


@pytest.mark.parametrize(
    ("reason", "at", "before"),
    [("expelled", 5.0, 5.0), ("expelled", 0.0, math.inf), ("forbidden", 5.0, math.inf)],
)
async def test_expulsion_concerns_members_that_entered_before_it_and_a_revoke_all(
    reason: Any, at: float, before: float, registry: ConnectionRegistry
):
    theirs = Connection("c1")
    registry.add(theirs)
    await tell(registry, RoomRevoked(namespace="hub", user_id="7", room="thread:42", reason=reason, at=at))
    assert theirs.entered_before == [before]


async def test_presence_is_passed_on(registry: ConnectionRegistry):
    heard: list[PresenceChanged] = []
    registry.on_presence = heard.append
    signal = PresenceChanged(user_id="7", status="away", chosen=True, since=1.0)
    await tell(registry, signal)
    assert heard == [signal]


async def test_unknown_signal_does_no_harm(registry: ConnectionRegistry, caplog):
    """From a newer version, in a rolling update."""
    layer: Any = get_channel_layer()
    await layer.group_send(CONTROL_GROUP, {"type": "control.signal", "signal": {"type": "FromTheFuture"}})
    theirs = Connection("c1", jti="j1")
    registry.add(theirs)
    await tell(registry, TokenRevoked(jti="j1"))
    assert theirs.orders
    assert "signal not understood" in caplog.text
