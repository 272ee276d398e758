from __future__ import annotations

import asyncio
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer, get_channel_layer
from redis.exceptions import ConnectionError as RedisDown

from realtime.connections.registry import ConnectionRegistry
from realtime.layers import stock
from realtime.layers.interface import room_layer
from realtime.layers.signals import RoomRevoked, TokenRevoked, broadcast
from realtime.protocol.close_codes import fitting_reason
from tests.connections.support import Connection, enter, tell
from tests.inprocess import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("process")


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


# --- Starting and stopping ---------------------------------------------------------------------------


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


async def test_signals_reach_a_node_that_starts_with_its_first_probe():
    registry = ConnectionRegistry.current()
    await registry.probe(PATIENCE)
    theirs = Connection("c1", jti="j1")
    registry.add(theirs)
    await broadcast(TokenRevoked(jti="j1"))
    await eventually(lambda: theirs.orders)
