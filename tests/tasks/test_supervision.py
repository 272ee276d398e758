"""No exception ends a task that runs for as long as its process does; injected into each of them."""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer, get_channel_layer

from presence.sweeper import Sweeper
from presence.tracker import PresenceTracker
from realtime.bridge.bridge import Bridge
from realtime.bridge.inbox import Inbox
from realtime.connections.deadlines import Deadlines
from realtime.connections.registry import ConnectionRegistry
from realtime.layers import stock as stock_layers
from realtime.layers.gap_repair import GapRepair
from realtime.layers.history_reader import HistoryReader
from realtime.layers.liveness import InstanceLiveness
from realtime.redis import topology
from realtime.redis.client import client, key
from realtime.redis.url import parse
from realtime.server import vitals
from realtime.server.keepalive import PING_SECONDS, Keepalive
from realtime.tasks import supervision
from realtime.tasks.supervision import supervise
from realtime.telemetry import metrics
from tests.e2e.harness import ROOT
from tests.inprocess import HUB, PATIENCE, PORTAL, bridging, connected, eventually
from tests.tasks.failing import Failing, failures

pytestmark = pytest.mark.usefixtures("impatient", "process")


async def test_cancellation_that_comes_from_within_ends_no_task(caplog):
    calls: list[int] = []

    async def work() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise asyncio.CancelledError
        await asyncio.Event().wait()

    before = failures("within")
    task = asyncio.create_task(supervise("within", work))
    await eventually(lambda: len(calls) == 2)
    assert failures("within") == before + 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@contextlib.asynccontextmanager
async def running(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# --- The tasks ---------------------------------------------------------------------------------------


def watching() -> Any:
    return running(vitals.watch())


def sweeping() -> Any:
    return running(Sweeper().run())


@contextlib.asynccontextmanager
async def present(namespace: str) -> AsyncIterator[None]:
    """A connection whose user is listed, the presence task of its process with it."""
    async with connected(namespace, threads=["1"]) as client:
        yield
        await client.call("heartbeat")


@contextlib.asynccontextmanager
async def layer() -> AsyncIterator[None]:
    await get_channel_layer().new_channel()
    yield


@contextlib.asynccontextmanager
async def restored() -> AsyncIterator[None]:
    """A room whose subscription was lost and is back."""
    async with connected() as ana:
        await client().client_kill_filter(_type="pubsub")
        yield
        await ana.call("join:thread", {"thread_id": "1"})
        await ConnectionRegistry.current().probe(PATIENCE)


@contextlib.asynccontextmanager
async def rewound() -> AsyncIterator[None]:
    """A Redis that has lost its data, as far as one can tell."""
    async with connected():
        await eventually(lambda: client().exists(key("epoch")))
        await client().delete(key("epoch"))
        yield


@contextlib.asynccontextmanager
async def stock() -> AsyncIterator[None]:
    stock_layer = stock_layers.StockLayer(InMemoryChannelLayer())

    class Taking:
        message = staticmethod(lambda message: None)

    channel = await stock_layer.attach(Taking())  # type: ignore[arg-type]
    yield
    await stock_layer.send(channel, {"type": "a"})
    stock_layer.detach(channel)


@contextlib.asynccontextmanager
async def cluster() -> AsyncIterator[None]:
    found = topology.Cluster(parse("redis+cluster://127.0.0.1:1"))
    found.refresh()
    yield
    found.close()


TASKS: list[tuple[str, Callable[[], Any], Any, str]] = [
    ("vitals", watching, metrics.tally.__class__, "flush"),
    ("redis vitals", watching, vitals, "client"),
    ("sweeper", sweeping, Sweeper, "sweep"),
    ("pubsub", bridging, Inbox, "take"),
    ("streams", bridging, Bridge, "lead_or_stand_by"),
    ("presence", lambda: present(HUB), PresenceTracker, "_flush"),
    ("presence", lambda: present(PORTAL), PresenceTracker, "_flush"),
    ("timer", lambda: present(HUB), Deadlines, "check"),
    ("layer", layer, InstanceLiveness, "_check"),
    ("introduce", layer, InstanceLiveness, "_check"),
    ("recover", restored, GapRepair, "_recover"),
    ("compare", rewound, HistoryReader, "learn_ends"),
    ("channel", stock, InMemoryChannelLayer, "receive"),
    ("topology", cluster, topology.Cluster, "_look"),
]
LATER = {"layer", "compare"}
"""What is done on the way there, too, by another task."""


@pytest.mark.parametrize(
    ("task", "run", "owner", "function"), TASKS, ids=[f"{task}-{function}" for task, _, _, function in TASKS]
)
async def test_task_goes_on_after_a_failure_that_is_logged_and_counted(
    task: str, run: Callable[[], Any], owner: Any, function: str, monkeypatch, settings, caplog
):
    settings.REALTIME = {
        **settings.REALTIME,
        "CUSTOMER_PRESENCE": True,
        # Where the layer's own task does the same, it must not come first.
        "NODE_LEASE": 30 if task == "introduce" else 0.8,
        "PRESENCE_TTL": 300,
    }
    if function == "check":
        monkeypatch.setattr(
            "realtime.connections.deadlines.EXPIRY_NOTICE", 3598.0
        )  # a second or two from now
    before = failures(task)
    failing = None if task in LATER else Failing(monkeypatch, owner, function)
    async with asyncio.timeout(PATIENCE), run():
        failing = failing or Failing(monkeypatch, owner, function)
        await eventually(lambda: failing.calls >= 2)
        assert failures(task) == before + 1
    assert "RuntimeError: injected" in caplog.text
    assert "task failed" in caplog.text


async def test_supervised_work_that_returns_is_not_started_again():
    calls = 0

    async def work() -> None:
        nonlocal calls
        calls += 1

    await supervise("test", work)
    assert calls == 1


async def test_supervised_work_can_be_cancelled_while_it_runs_and_while_it_pauses(monkeypatch):
    async def endless() -> None:
        await asyncio.Event().wait()

    async def fail() -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(supervision, "PAUSE", 60.0)
    for work in (endless, fail):
        task = asyncio.create_task(supervise("test", work))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def tasks_made(path: Path) -> Iterator[str]:
    """The functions of a module in which a task is made that no call of `supervise` is part of."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        source = ast.unparse(function)
        if ("create_task(" in source or "ensure_future(" in source) and "supervise(" not in source:
            yield function.name


ENDING = {
    "presence/snapshots.py": {"of"},
    "realtime/bridge/bridge.py": {"_lead"},
    "realtime/bridge/stream_delivery.py": {"_handle"},
    "realtime/redis/connection.py": {"schedule"},
    "realtime/bridge/bus_handlers.py": {"_failure", "_start"},
    "realtime/server/lifespan.py": {"lifespan"},
    "realtime/layers/listener.py": {"catch_up"},
    "realtime/management/commands/runbridge.py": {"_run"},
    "realtime/inline/delivery.py": {"deliver"},
    "realtime/inline/life.py": {"begin"},
    "realtime/layers/stock.py": {"leave"},
    "realtime/connections/probe.py": {"run"},
    "realtime/connections/frame_outlet.py": {"_put"},
    "realtime/redis/pipelining.py": {"begin", "resend"},
    "realtime/tasks/task_set.py": {"spawn"},
    "realtime/server/dispatcher.py": {"put_nowait"},
    "realtime/server/readiness.py": {"reasons"},
    "realtime/server/uvicorn_server.py": {"on_tick"},
    "realtime/server/websocket_beginning.py": {"handshake_received"},
    "realtime/redis/pubsub.py": {"_schedule"},
}
"""Where tasks are made that end by themselves: what goes wrong in them concerns what they were made for."""


def test_every_other_task_that_the_server_makes_is_supervised():
    """A task that runs all the time belongs in `supervise`, and one that ends in `ENDING`."""
    for folder in ("realtime", "presence"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not name.startswith(("realtime/client/", "realtime/testing/")):  # no part of the server
                assert set(tasks_made(path)) <= ENDING.get(name, set()), name


async def test_keepalive_looks_after_all_other_connections_when_one_fails(monkeypatch, caplog):
    looked: list[str] = []

    class Peer:
        def __init__(self, name: str) -> None:
            self.name = name

        def check_alive(self) -> None:
            looked.append(self.name)
            if self.name == "odd":
                raise RuntimeError("injected")

    before = failures("keepalive")
    keepalive = Keepalive()
    for name in ("odd", "ana"):
        keepalive.add(Peer(name))  # type: ignore[arg-type]
    for _ in range(PING_SECONDS):
        keepalive.tick()
    keepalive.stop()
    assert sorted(looked) == ["ana", "odd"]
    assert failures("keepalive") == before + 1
