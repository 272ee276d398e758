from __future__ import annotations

import asyncio
import math
from typing import Any
from unittest.mock import AsyncMock

import pytest
from channels.layers import InMemoryChannelLayer, get_channel_layer
from redis.exceptions import ConnectionError as RedisDown

from realtime.auth.revocation import MARK_SECONDS
from realtime.connections import signal_handler
from realtime.connections.registry import ConnectionRegistry
from realtime.connections.signal_handler import REVIEW_BATCH
from realtime.layers import stock
from realtime.layers.interface import room_layer
from realtime.layers.signals import (
    PresenceChanged,
    RoomRevoked,
    Signal,
    TokenRevoked,
    UserDisconnected,
    broadcast,
)
from realtime.protocol.close_codes import CloseCode, fitting_reason
from realtime.protocol.rooms import CONTROL_GROUP
from realtime.redis import schema_version
from realtime.redis.client import client
from realtime.server.readiness import reasons_not_ready
from tests.inprocess import PATIENCE, eventually, http

pytestmark = pytest.mark.usefixtures("process")


class Connection:
    """What a registry knows of a connection, and the orders it got."""

    def __init__(
        self,
        connection_id: str,
        user_id: str = "7",
        namespace: str = "hub",
        jti: str = "j",
        at: float = 100.0,
    ) -> None:
        self.connection_id = connection_id
        self.user = (namespace, user_id)
        self.principal: Any = type("Principal", (), {"jti": jti})
        self.opened_at = at
        self.orders: list[tuple[str, tuple[Any, ...]]] = []
        self.entered_before: list[float] = []
        """Only a member who entered before then was to be expelled."""
        self.reviews: list[BaseException | None] = []
        """What is to happen at the next reviews: an error, or that it succeeds."""
        self.reviewed = 0

    def terminate(self, code: CloseCode, reason: str = "") -> None:
        self.orders.append(("terminate", (code, reason)))

    def user_disconnected(self, at: float, reason: str) -> None:
        if self.opened_at <= at:
            self.terminate(CloseCode.REVOKED, reason)

    async def review(self) -> None:
        self.reviewed += 1
        if self.reviews and (error := self.reviews.pop(0)):
            raise error

    def expel(self, room: str, reason: str, *, before: float = math.inf) -> None:
        self.orders.append(("expel", (room, reason)))
        self.entered_before.append(before)


class SpyingLayer:
    """The real channel layer; it counts, and fails on request."""

    def __init__(self) -> None:
        self.attached: list[str] = []
        self.detached: list[str] = []
        self.sent = 0
        self.refuses = self.loses = False

    def __getattr__(self, name: str) -> Any:
        return getattr(room_layer(), name)

    async def attach(self, mailbox: Any) -> str:
        self.attached.append(await room_layer().attach(mailbox))
        return self.attached[-1]

    def detach(self, channel: str) -> None:
        self.detached.append(channel)
        room_layer().detach(channel)

    async def group_add(self, *args: Any) -> None:
        if self.refuses:
            raise RedisDown("away")
        await room_layer().group_add(*args)

    async def group_send(self, *args: Any) -> None:
        self.sent += 1
        if not self.loses:
            await room_layer().group_send(*args)


@pytest.fixture
def layer() -> Any:
    return SpyingLayer()


@pytest.fixture
async def registry() -> ConnectionRegistry:
    registry = ConnectionRegistry.current()
    await registry.start()
    return registry


def enter(registry: ConnectionRegistry, *connections: Any) -> None:
    for connection in connections:
        registry.add(connection)


async def tell(registry: ConnectionRegistry, signal: Signal) -> None:
    """Broadcast, and wait until this registry has acted on it."""
    await broadcast(signal)
    await registry.probe(PATIENCE)


# --- Connections -------------------------------------------------------------------------------------


async def test_loop_has_one_registry(registry: ConnectionRegistry):
    assert ConnectionRegistry.current() is registry


async def test_connections_are_found_by_user_and_namespace(registry: ConnectionRegistry):
    one, two = Connection("c1"), Connection("c2")
    other_user, other_namespace = Connection("c3", user_id="8"), Connection("c4", namespace="portal")
    enter(registry, one, two, other_user, other_namespace)
    assert set(registry.connections_of("hub", "7")) == {one, two}
    assert set(registry.connections_of("portal", "7")) == {other_namespace}
    assert set(registry.connections_of("portal", "8")) == set()


@pytest.mark.parametrize("leaves", [0, 1, 2])
async def test_connections_of_a_user_are_found_whichever_of_them_has_left(
    registry: ConnectionRegistry, leaves: int
):
    theirs = [Connection(f"c{number}") for number in range(3)]
    enter(registry, *theirs)
    registry.remove(theirs.pop(leaves))
    assert set(registry.connections_of("hub", "7")) == set(registry.connections_with("j")) == {*theirs}
    while theirs:
        registry.remove(theirs.pop())
        assert set(registry.connections_of("hub", "7")) == set(registry.connections_with("j")) == {*theirs}


async def test_removed_connection_is_forgotten(registry: ConnectionRegistry):
    one = Connection("c1")
    registry.add(one)
    registry.remove(one)
    registry.remove(one)
    assert not registry.connections
    assert not [*registry.connections_of("hub", "7")]


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
    await asyncio.wait_for(reviewing, 10)


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


async def test_registry_that_stopped_hears_nothing(registry: ConnectionRegistry):
    theirs = Connection("c1", jti="j1")
    registry.add(theirs)
    await registry.stop()
    await broadcast(TokenRevoked(jti="j1"))
    await asyncio.sleep(0.1)
    assert theirs.orders == []
    await registry.stop()


async def test_registry_starts_once_however_many_connect(layer: SpyingLayer):
    registry = ConnectionRegistry(layer)
    await asyncio.gather(*(registry.start() for _ in range(10)))
    assert len(layer.attached) == 1
    theirs = Connection("c1")
    registry.add(theirs)
    await tell(registry, RoomRevoked(namespace="hub", user_id="7", room="thread:42"))
    assert len(theirs.orders) == 1


@pytest.mark.parametrize("reason", ["", "shift is over", "é" * 100, "🦊" * 100, "x" * 200])
def test_reason_fits_into_a_close_frame(reason: str):
    fitting = fitting_reason(reason)
    assert len(fitting.encode()) <= 123
    assert reason.startswith(fitting)
    assert len(fitting.encode()) >= min(len(reason.encode()), 120)


# --- Readiness ---------------------------------------------------------------------------------------


async def test_callers_at_the_same_time_share_a_probe(layer: SpyingLayer):
    registry = ConnectionRegistry(layer)
    await asyncio.gather(*(registry.probe(PATIENCE) for _ in range(20)))
    assert layer.sent == 1
    await registry.probe(PATIENCE)
    assert layer.sent == 2


async def test_registry_on_another_layer_hears_again_after_the_layer_failed(process: str, monkeypatch):
    """Another channel layer's `receive` raises when Redis goes away."""

    class Failing(InMemoryChannelLayer):
        failures = 1

        async def receive(self, channel: str) -> Any:
            if self.failures:
                self.failures -= 1
                raise RedisDown("away")
            return await super().receive(channel)

    monkeypatch.setattr(stock, "PAUSE", 0.01)
    layer = Failing()
    registry = ConnectionRegistry(stock.StockLayer(layer))
    await registry.start()
    await registry.probe(5)
    assert not layer.failures
    await registry.stop()


async def test_registry_that_could_not_start_leaves_no_channel_behind(layer: SpyingLayer):
    layer.refuses = True
    with pytest.raises(RedisDown):
        await ConnectionRegistry(layer).start()
    assert layer.attached == layer.detached != []


async def test_probe_that_does_not_come_back_times_out_and_the_next_one_is_a_new_one(layer: SpyingLayer):
    registry = ConnectionRegistry(layer)
    await registry.start()
    layer.loses = True
    with pytest.raises(TimeoutError):
        await registry.probe(0.1)
    layer.loses = False
    await registry.probe(PATIENCE)


async def test_stale_answer_to_a_probe_is_ignored(registry: ConnectionRegistry):
    layer: Any = get_channel_layer()
    await layer.group_send("node." + registry.id, {"type": "node.probe", "probe": "long ago"})
    await registry.probe(PATIENCE)


# --- Health, over HTTP -------------------------------------------------------------------------------


async def test_process_that_can_deliver_is_ready():
    answer = await http("/readyz")
    assert (answer.status, answer.json) == (200, {"status": "ready", "reasons": []})


async def test_process_without_redis_is_not_ready_but_alive(settings):
    dead = "redis://127.0.0.1:1/0"
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": dead}
    answer = await http("/readyz")
    assert answer.status == 503
    assert answer.json["reasons"] == [
        "redis does not answer",
        "a probe did not come back through the subscription",
    ]
    assert (await http("/healthz")).status == 200


async def test_process_that_hears_nothing_is_not_ready(monkeypatch):
    monkeypatch.setattr(ConnectionRegistry.current(), "probe", AsyncMock(side_effect=TimeoutError))
    answer = await http("/readyz")
    assert answer.status == 503
    assert answer.json["reasons"] == ["a probe did not come back through the subscription"]


async def test_mistake_in_the_probe_is_not_hidden(monkeypatch):
    monkeypatch.setattr(ConnectionRegistry.current(), "probe", AsyncMock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        await reasons_not_ready()


async def test_readiness_does_not_wait_for_redis_for_long(monkeypatch):
    async def hang(*args: Any, **kwargs: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(schema_version, "claim", hang)
    async with asyncio.timeout(PATIENCE):
        assert (await http("/readyz")).status == 503


# --- Metrics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "status"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "s3cret"}, 401)],
)
async def test_metrics_want_their_token_when_there_is_one(settings, given: dict[str, str], status: int):
    settings.REALTIME = {**settings.REALTIME, "METRICS_TOKEN": "s3cret"}
    answer = await http("/metrics", **given)
    assert (answer.status, answer.headers["www-authenticate"]) == (status, "Bearer")
    assert (await http("/metrics", Authorization="Bearer s3cret")).status == 200


async def test_signals_reach_a_node_that_starts_with_its_first_probe():
    registry = ConnectionRegistry.current()
    await registry.probe(PATIENCE)
    theirs = Connection("c1", jti="j1")
    registry.add(theirs)
    await broadcast(TokenRevoked(jti="j1"))
    await eventually(lambda: theirs.orders)
