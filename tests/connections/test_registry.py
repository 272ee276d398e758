from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer, get_channel_layer
from redis.exceptions import ConnectionError as RedisDown

from realtime.auth.revocation import MARK_SECONDS
from realtime.connections import registry as node_module
from realtime.connections.registry import REVIEW_BATCH, ConnectionRegistry
from realtime.layers import stock
from realtime.layers.signals import (
    PresenceChanged,
    Signal,
    ThreadRevoked,
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
    """What a node knows of a connection, and what it was told to do."""

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
        self.told: list[tuple[str, tuple[Any, ...]]] = []
        self.reviews: list[BaseException | None] = []
        """What is to happen at the next reviews: an error, or that it succeeds."""
        self.reviewed = 0

    def terminate(self, code: CloseCode, reason: str = "") -> None:
        self.told.append(("terminate", (code, reason)))

    async def review(self) -> None:
        self.reviewed += 1
        if self.reviews and (error := self.reviews.pop(0)):
            raise error

    def expel(self, room: str, reason: str, *, before: float = math.inf) -> None:
        self.told.append(("expel", (room, reason)))


@pytest.fixture
async def node() -> ConnectionRegistry:
    node = ConnectionRegistry.current()
    await node.start()
    return node


async def tell(node: ConnectionRegistry, signal: Signal) -> None:
    """Broadcast, and wait until this node has obeyed."""
    await broadcast(signal)
    await node.probe(PATIENCE)


# --- Connections -------------------------------------------------------------------------------------


async def test_loop_has_one_node(node: ConnectionRegistry):
    assert ConnectionRegistry.current() is node


async def test_connections_are_found_by_user_and_namespace(node: ConnectionRegistry):
    one, two = Connection("c1"), Connection("c2")
    other_user, other_namespace = Connection("c3", user_id="8"), Connection("c4", namespace="portal")
    for connection in (one, two, other_user, other_namespace):
        node.add(connection)
    assert set(node.connections_of("hub", "7")) == {one, two}
    assert set(node.connections_of("portal", "7")) == {other_namespace}
    assert set(node.connections_of("portal", "8")) == set()


async def test_removed_connection_is_forgotten(node: ConnectionRegistry):
    one = Connection("c1")
    node.add(one)
    node.remove(one)
    node.remove(one)
    assert not node.connections
    assert not node._users


# --- Signals -----------------------------------------------------------------------------------------


async def test_disconnected_user_leaves_with_the_operators_reason(node: ConnectionRegistry):
    older, same, newer = (Connection(f"c{at}", at=at) for at in (99.0, 100.0, 101.0))
    other_namespace = Connection("p", namespace="portal", at=99.0)
    for connection in (older, same, newer, other_namespace):
        node.add(connection)
    await tell(node, UserDisconnected(namespace="hub", user_id="7", at=100.0, reason="shift is over"))
    told = [("terminate", (CloseCode.REVOKED, "shift is over"))]
    assert (older.told, same.told) == (told, told)
    assert (newer.told, other_namespace.told) == ([], [])


async def test_revoked_token_ends_what_it_opened_and_nothing_else(node: ConnectionRegistry):
    theirs, other = Connection("c1", jti="j1"), Connection("c2", jti="j2")
    node.add(theirs)
    node.add(other)
    await tell(node, TokenRevoked(jti="j1"))
    assert theirs.told == [("terminate", (CloseCode.REVOKED, ""))]
    assert other.told == []


async def test_revoked_token_no_longer_ends_who_goes_on_with_another(node: ConnectionRegistry):
    renewed, stays = Connection("c1", jti="j1"), Connection("c2", jti="j1")
    for connection in (renewed, stays):
        node.add(connection)
    renewed.principal = type("Principal", (), {"jti": "j2"})
    node.refreshed(renewed, "j1")
    await tell(node, TokenRevoked(jti="j1"))
    assert (len(renewed.told), len(stays.told)) == (0, 1)
    await tell(node, TokenRevoked(jti="j2"))
    assert (len(renewed.told), len(stays.told)) == (1, 1)
    node.remove(renewed)
    node.remove(stays)
    assert not node._tokens


async def test_connection_that_fails_to_end_is_not_the_others_problem(node: ConnectionRegistry, caplog):
    before, broken, after = (Connection(f"c{n}", jti="j1") for n in range(3))
    broken.terminate = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    for connection in (before, broken, after):
        node.add(connection)
    for signal in (
        TokenRevoked(jti="j1"),
        UserDisconnected(namespace="hub", user_id="7", at=100.0, reason=""),
    ):
        await tell(node, signal)
        assert (len(before.told), len(after.told)) == (1, 1)
        before.told.clear()
        after.told.clear()
    assert "signal not obeyed" in caplog.text


# --- Orders that may have been missed ------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "REVIEW_PAUSE", 0.01)


@pytest.mark.usefixtures("quick")
async def test_rights_are_looked_at_again_until_redis_has_answered_for_everyone(
    node: ConnectionRegistry, caplog
):
    everybody = [Connection(f"c{n}") for n in range(REVIEW_BATCH * 2 + 1)]
    for n, connection in enumerate(everybody):
        connection.reviews = [RedisDown("away")] * (n % 3)
        node.add(connection)
    await node._review(1.0)
    assert [connection.reviewed for connection in everybody] == [n % 3 + 1 for n in range(len(everybody))]
    assert not any(connection.told for connection in everybody)


@pytest.mark.usefixtures("quick")
async def test_connection_whose_rights_cannot_be_known_is_closed_and_the_others_stay(
    node: ConnectionRegistry, caplog
):
    fails, fine = Connection("c1"), Connection("c2")
    fails.reviews = [ZeroDivisionError()]
    for connection in (fails, fine):
        node.add(connection)
    await asyncio.wait_for(node._review(1.0), 10)
    assert fails.told == [("terminate", (CloseCode.INTERNAL_ERROR, ""))]
    assert fine.told == []
    assert "rights not known" in caplog.text


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", ["does not answer", "cannot be reached"])
async def test_policy_that_gives_no_answer_holds_up_the_others_for_a_while_only(
    node: ConnectionRegistry, monkeypatch, caplog, how: str
):
    async def review() -> None:
        if how == "does not answer":
            await asyncio.Event().wait()
        raise ConnectionRefusedError

    monkeypatch.setattr(node_module, "REVIEW_SECONDS", 0.1)
    fails, fine = Connection("c1"), Connection("c2")
    fails.review = review  # type: ignore[method-assign]
    for connection in (fails, fine):
        node.add(connection)
    await asyncio.wait_for(node._review(1.0), PATIENCE)
    assert fails.told == [("terminate", (CloseCode.INTERNAL_ERROR, ""))]
    assert fine.told == []
    assert "rights not known" in caplog.text


@pytest.mark.usefixtures("quick")
async def test_redis_that_does_not_answer_is_waited_for_however_long_that_takes(
    node: ConnectionRegistry, monkeypatch
):
    monkeypatch.setattr(node_module, "REVIEW_SECONDS", 0.1)
    connection = Connection("c1")
    connection.reviews = [RedisDown("away")] * 50
    node.add(connection)
    await asyncio.wait_for(node._review(1.0), PATIENCE)
    assert connection.reviewed == 51
    assert connection.told == []


@pytest.mark.usefixtures("quick")
async def test_connection_that_ends_meanwhile_is_not_waited_for(node: ConnectionRegistry):
    gone = Connection("c1")
    gone.reviews = [RedisDown("away")] * 1_000_000
    node.add(gone)
    reviewing = asyncio.create_task(node._review(1.0))
    await eventually(lambda: gone.reviewed)
    node.remove(gone)
    await asyncio.wait_for(reviewing, 10)


@pytest.mark.parametrize("seconds", [0.0, MARK_SECONDS / 2, MARK_SECONDS / 2 + 0.1, 10_000.0])
async def test_after_a_loss_longer_than_orders_are_remembered_all_begin_anew(
    node: ConnectionRegistry, seconds: float
):
    everybody = [Connection(f"c{n}") for n in range(3)]
    for connection in everybody:
        node.add(connection)
    await node._review(seconds)
    is_long = seconds > MARK_SECONDS / 2
    told = [("terminate", (CloseCode.RESTARTING, ""))] if is_long else []
    assert all(connection.told == told for connection in everybody)
    assert all(connection.reviewed == (not is_long) for connection in everybody)


async def test_lost_subscription_has_every_connection_looked_at(node: ConnectionRegistry):
    theirs = Connection("c1")
    node.add(theirs)
    await client().client_kill_filter(_type="pubsub")
    await eventually(lambda: theirs.reviewed)
    await node.probe(5)


async def test_revoked_thread_is_left_by_that_portal_user_only(node: ConnectionRegistry):
    theirs, hub_user = Connection("c1", namespace="portal"), Connection("c2", namespace="hub")
    other = Connection("c3", user_id="8", namespace="portal")
    for connection in (theirs, hub_user, other):
        node.add(connection)
    await tell(node, ThreadRevoked(user_id="7", thread_id="42"))
    assert theirs.told == [("expel", ("thread:42", "forbidden"))]
    assert (hub_user.told, other.told) == ([], [])


async def test_presence_is_passed_on(node: ConnectionRegistry):
    heard: list[PresenceChanged] = []
    node.on_presence = heard.append
    signal = PresenceChanged(user_id="7", status="away", chosen=True, since=1.0)
    await tell(node, signal)
    assert heard == [signal]


async def test_signal_nobody_understands_does_no_harm(node: ConnectionRegistry, caplog):
    """From a newer version, in a rolling update."""
    layer: Any = get_channel_layer()
    await layer.group_send(CONTROL_GROUP, {"type": "control.signal", "signal": {"type": "FromTheFuture"}})
    theirs = Connection("c1", jti="j1")
    node.add(theirs)
    await tell(node, TokenRevoked(jti="j1"))
    assert theirs.told
    assert "signal not understood" in caplog.text


async def test_node_that_stopped_hears_nothing(node: ConnectionRegistry):
    theirs = Connection("c1", jti="j1")
    node.add(theirs)
    await node.stop()
    await broadcast(TokenRevoked(jti="j1"))
    await asyncio.sleep(0.1)
    assert theirs.told == []
    await node.stop()


async def test_node_starts_once_however_many_connect(node: ConnectionRegistry):
    channel = node._channel
    await asyncio.gather(*(node.start() for _ in range(10)))
    assert node._channel == channel
    theirs = Connection("c1")
    node.add(theirs)
    await tell(node, ThreadRevoked(namespace="hub", user_id="7", thread_id="42"))
    assert len(theirs.told) == 1


@pytest.mark.parametrize("reason", ["", "shift is over", "é" * 100, "🦊" * 100, "x" * 200])
def test_reason_fits_into_a_close_frame(reason: str):
    fitting = fitting_reason(reason)
    assert len(fitting.encode()) <= 123
    assert reason.startswith(fitting)
    assert len(fitting.encode()) >= min(len(reason.encode()), 120)


# --- Readiness ---------------------------------------------------------------------------------------


async def test_probe_comes_back_through_the_subscription():
    await ConnectionRegistry.current().probe(5)


async def test_callers_at_the_same_time_share_a_probe(node: ConnectionRegistry, monkeypatch):
    sent = 0
    real: Any = node._layer

    class Layer:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        async def group_send(self, *args: Any) -> None:
            nonlocal sent
            sent += 1
            await real.group_send(*args)

    monkeypatch.setattr(node, "_layer", Layer())
    await asyncio.gather(*(node.probe(PATIENCE) for _ in range(20)))
    assert sent == 1
    await node.probe(PATIENCE)
    assert sent == 2


async def test_node_on_another_layer_hears_again_after_the_layer_failed(process: str, monkeypatch):
    """Another channel layer's `receive` raises when Redis goes away."""

    class Failing(InMemoryChannelLayer):
        failures = 1

        async def receive(self, channel: str) -> Any:
            if self.failures:
                self.failures -= 1
                raise RedisDown("away")
            return await super().receive(channel)

    monkeypatch.setattr(stock, "PAUSE", 0.01)
    node, layer = ConnectionRegistry(), Failing()
    monkeypatch.setattr(node, "_layer", stock.StockLayer.around(layer))
    await node.start()
    await node.probe(5)
    assert not layer.failures
    await node.stop()


async def test_node_that_could_not_start_leaves_no_channel_behind(process: str, monkeypatch):
    node = ConnectionRegistry()
    before = set(node._layer._here.channels)

    async def group_add(*args: Any) -> None:
        raise RedisDown("away")

    monkeypatch.setattr(node._layer, "group_add", group_add)
    with pytest.raises(RedisDown):
        await node.start()
    assert set(node._layer._here.channels) == before


async def test_probe_that_does_not_come_back_times_out(node: ConnectionRegistry):
    node._layer.detach(node._channel)
    with pytest.raises(TimeoutError):
        await node.probe(0.1)
    assert not node._probes


async def test_stale_answer_to_a_probe_is_ignored(node: ConnectionRegistry):
    await node._layer.group_send(node._own_group, {"type": "node.probe", "probe": "long ago"})
    await node.probe(PATIENCE)


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
    async def deaf(timeout: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(ConnectionRegistry.current(), "probe", deaf)
    answer = await http("/readyz")
    assert answer.status == 503
    assert answer.json["reasons"] == ["a probe did not come back through the subscription"]


async def test_mistake_in_the_probe_is_not_hidden(monkeypatch):
    async def broken(timeout: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ConnectionRegistry.current(), "probe", broken)
    with pytest.raises(ZeroDivisionError):
        await reasons_not_ready()


async def test_readiness_does_not_wait_for_redis_for_long(monkeypatch):
    async def hang(*args: Any, **kwargs: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(schema_version, "claim", hang)
    async with asyncio.timeout(PATIENCE):
        assert (await http("/readyz")).status == 503


# --- Metrics -----------------------------------------------------------------------------------------


async def test_metrics_are_prometheus_text():
    answer = await http("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"realtime_connections" in answer.body


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
    node = ConnectionRegistry.current()
    await node.probe(PATIENCE)
    theirs = Connection("c1", jti="j1")
    node.add(theirs)
    await broadcast(TokenRevoked(jti="j1"))
    await eventually(lambda: theirs.told)
