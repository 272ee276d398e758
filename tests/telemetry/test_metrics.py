"""What is counted, that all of it is documented, and that several processes count together."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from realtime.connections.registry import ConnectionRegistry
from realtime.protocol.publication import Publication
from realtime.server import backlog, vitals
from realtime.telemetry import metrics
from realtime.telemetry.prometheus import CONNECTIONS, exposition
from realtime.telemetry.prometheus import port as serve_metrics
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import ROOT, Stack, free_port, unique
from tests.e2e.harness import eventually as eventually_there
from tests.inprocess import add, bridging, connected, eventually

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Counting:
    """What has been added to each series since."""

    def __init__(self) -> None:
        self._before = parsed(exposition().decode())

    def __call__(self, name: str, **labels: str) -> float:
        series = (name, tuple(sorted(labels.items())))
        return parsed(exposition().decode()).get(series, 0.0) - self._before.get(series, 0.0)


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(name)


@pytest.fixture
def counted() -> Counting:
    return Counting()


# --- Documentation -----------------------------------------------------------------------------------

KINDS: dict[type, str] = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}


def registered() -> set[tuple[str, str, tuple[str, ...]]]:
    """Name, kind and labels of everything there is."""
    found = set()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (kind,) = (name for base, name in KINDS.items() if isinstance(metric, base))
            (family,) = metric.describe()
            suffix = "_total" if kind == "counter" else ""
            labels = tuple(metric._labelnames)  # noqa: SLF001
            found.add((family.name + suffix, kind, labels))
    return found


def documented() -> set[tuple[str, str, tuple[str, ...]]]:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]+) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
    )
    return {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_every_metric_is_documented_and_every_documented_one_is_there():
    assert documented() == registered()


def test_what_is_exposed_is_what_is_registered():
    names = {family.name for family in text_string_to_metric_families(exposition().decode())}
    assert {name for name in names if re.fullmatch(r"realtime_\w+(?<!_created)", name)} == {
        name.removesuffix("_total") for name, _, _ in registered()
    }


# --- Connections -------------------------------------------------------------------------------------

in_process = pytest.mark.usefixtures("process")


@in_process
async def test_user_with_two_connections_is_one_user(counted: Counting):
    async with connected("hub", "7"), connected("hub", "7"), connected("portal", "7"):
        assert counted("realtime_users", namespace="hub") == 1
        assert counted("realtime_users", namespace="portal") == 1
        assert counted("realtime_connections", namespace="hub") == 2
    await eventually(lambda: not ConnectionRegistry.current().connections)
    assert counted("realtime_users", namespace="hub") == 0
    assert counted("realtime_users", namespace="portal") == 0


@in_process
async def test_event_that_a_client_made_up_is_no_label(counted: Counting):
    made_up = unique("made:")
    async with connected() as ana:
        assert (await ana.refused(made_up))["code"] == "unknown_event"
    assert counted("realtime_errors_total", code="unknown_event") == 1
    assert made_up not in exposition().decode()


def test_close_code_that_a_client_made_up_is_no_label(counted: Counting):
    for code in (1001, 4801, 4802):
        metrics.closed("client", code)
    assert counted("realtime_closes_total", by="client", code="1001") == 1
    assert counted("realtime_closes_total", by="client", code="other") == 2


@in_process
async def test_frames_to_one_connection_are_counted_by_event(counted: Counting):
    async with connected() as ana:
        await ana.call("heartbeat")
    for event in ("connection:ready", "ack"):
        assert counted("realtime_frames_out_total", kind="direct", event=event) == 1
    assert counted("realtime_frames_in_total", event="heartbeat") == 1


@in_process
@pytest.mark.parametrize(("since", "outcome"), [("", "nothing_missed"), ("17", "lost")])
async def test_coming_back_is_counted_by_outcome(counted: Counting, since: str, outcome: str):
    async with connected() as ana:
        end = (await ana.call("join:thread", {"thread_id": "42"}))["offset"]
    async with connected() as ana:
        await ana.call("join:thread", {"thread_id": "42", "since": since or end})
    assert counted("realtime_recoveries_total", outcome=outcome) == 1


# --- Fan-out -----------------------------------------------------------------------------------------


def publication(event: str) -> Publication:
    return Publication(2, 1, "", f'{{"event":"{event}","room":"r","offset":"2","data":{{}}}}'.encode())


def test_fan_out_is_counted_as_deliveries_frames_and_size(counted: Counting):
    tally = metrics.Tally()
    tally.fan_out([publication("thread:message"), publication("chat:ended")], 30)
    tally.fan_out([publication("thread:message")], 100_000)
    tally.sent("ephemeral", publication("thread:typing").frame, 3)
    tally.flush()
    tally.flush()  # counted once
    assert counted("realtime_deliveries_total") == 100_060
    assert counted("realtime_frames_out_total", kind="room", event="thread:message") == 100_030
    assert counted("realtime_frames_out_total", kind="room", event="chat:ended") == 30
    assert counted("realtime_frames_out_total", kind="ephemeral", event="thread:typing") == 3
    assert counted("realtime_fanout_connections_sum") == 100_030
    assert counted("realtime_fanout_connections_bucket", le="25.0") == 0
    assert counted("realtime_fanout_connections_bucket", le="50.0") == 1
    assert counted("realtime_fanout_connections_bucket", le="10000.0") == 1
    assert counted("realtime_fanout_connections_bucket", le="+Inf") == 2


@pytest.mark.parametrize(
    "frame", [b"", b"x", b"{}", b"not ours" * 9, b'{"event":"\xff"}', b'{"event":"A","room":"r"}']
)
def test_frame_that_is_none_of_ours_is_other(counted: Counting, frame: bytes):
    tally = metrics.Tally()
    tally.fan_out([Publication(2, 1, "", frame)], 3)
    tally.flush()
    assert counted("realtime_frames_out_total", kind="room", event="other") == 3


@in_process
async def test_message_from_the_bus_is_counted_on_its_way(counted: Counting):
    async with bridging(), connected("hub", "7") as ana, connected("hub", "8") as bia:
        for client in (ana, bia):
            await client.call("join:thread", {"thread_id": "42"})
        await add("thread:message", {"thread_id": "42", "message_id": "1"})
        for client in (ana, bia):
            await client.expect("thread:message")
        await eventually(lambda: counted("realtime_bus_lag_seconds_count"))
        assert counted("realtime_frames_out_total", kind="room", event="thread:message") >= 2
        assert counted("realtime_deliveries_total") >= 2
        assert counted("realtime_fanout_connections_count") >= 1
        assert counted("realtime_bus_lag_seconds_sum") < 5
        assert gauge("realtime_bridge_leading") == 1
    assert gauge("realtime_bridge_leading") == 0


# --- The process -------------------------------------------------------------------------------------


@in_process
async def test_vitals_are_measured_every_second(counted: Counting, monkeypatch):
    monkeypatch.setattr(vitals, "SECONDS", 0.01)
    metrics.REDIS_UP.set(0)
    watching = asyncio.create_task(vitals.watch(backlog.measure_backlog))
    await eventually(lambda: counted("realtime_loop_lag_seconds_count") >= 3)
    await eventually(lambda: counted("realtime_redis_round_trip_seconds_count") >= 3)
    assert gauge("realtime_redis_up") == 1
    assert gauge("realtime_tasks") >= 2
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@in_process
async def test_redis_that_does_not_answer_is_down(settings, monkeypatch):
    monkeypatch.setattr(vitals, "SECONDS", 0.01)
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "unix:///nowhere/redis.sock"}
    metrics.REDIS_UP.set(1)
    watching = asyncio.create_task(vitals.watch())
    await eventually(lambda: gauge("realtime_redis_up") == 0)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@in_process
async def test_redis_that_refuses_is_logged_once_with_its_reason(settings, monkeypatch, caplog):
    monkeypatch.setattr(vitals, "SECONDS", 0.01)
    with EmbeddedRedis() as server, server.client() as operator:
        operator.config_set("requirepass", "right")
        wrong = server.url.replace("unix://", "unix://:wrong@")
        settings.REALTIME = {**settings.REALTIME, "REDIS_URL": wrong}
        metrics.REDIS_UP.set(1)
        with caplog.at_level("INFO", vitals.__name__):
            watching = asyncio.create_task(vitals.watch())
            await eventually(lambda: gauge("realtime_redis_up") == 0)
            operator.config_set("requirepass", "wrong")
            await eventually(lambda: gauge("realtime_redis_up") == 1)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    refused, back = (record for record in caplog.records if record.name == vitals.__name__)
    assert (refused.getMessage(), back.getMessage()) == ("redis cannot be used", "redis can be used again")
    assert "username-password pair" in vars(refused)["error"]


class Behind:
    """A connection whose client reads nothing."""

    unsent = 70_000


def test_backlog_is_what_waits_for_clients_that_read_too_slowly(monkeypatch):
    monkeypatch.setattr(backlog, "behind", [Behind(), Behind()])
    backlog.measure_backlog()
    assert gauge("realtime_behind") == 2
    assert gauge("realtime_queue_bytes") == 140_000
    monkeypatch.setattr(backlog, "behind", [])
    backlog.measure_backlog()
    assert gauge("realtime_queue_bytes") == 0


# --- Real processes ----------------------------------------------------------------------------------

TOKEN = [("Authorization", "Bearer let me see")]


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, redis_url, REALTIME_METRICS_TOKEN="let me see", TMPDIR=str(tmp_path)) as stack:
        yield stack


async def scrape(stack: Stack, port: int | None = None) -> Samples:
    response = await stack.http("GET", "/metrics", TOKEN, port=port)
    assert response.status == 200, response
    return parsed(response.body.decode())


def workers(directory: Path) -> dict[int, Path]:
    """Process id of each worker that has said how many connections it has."""
    return {int(file.stem.rpartition("_")[2]): file for file in directory.glob("*/gauge_livesum_*.db")}


async def test_every_worker_answers_with_the_sum_of_all(stack: Stack, tmp_path: Path):
    server = stack.start(
        "workers", str(ROOT / "manage.py"), "runsockets", "--workers", "2", SOCKETS_PORT=str(stack.port)
    )
    hub = (("namespace", "hub"),)

    async def scraped(name: str, labels: Any = hub) -> set[float]:
        """The answers of many scrapes, which several workers have given."""
        return {(await scrape(stack)).get((name, labels), 0.0) for _ in range(12)}

    clients = [stack.client("hub", f"u{number}") for number in range(10)]
    for client in clients:
        await client.__aenter__()
    await eventually_there(lambda: len(workers(tmp_path)) == 2)
    assert await scraped("realtime_connections") == {10}
    assert await scraped("realtime_users") == {10}
    accepted = (("namespace", "hub"), ("result", "accepted"))
    assert await scraped("realtime_handshakes_total", accepted) == {10}

    victim, file = workers(tmp_path).popitem()
    os.kill(victim, SIGKILL)
    await eventually_there(lambda: not file.exists())
    left = (await scrape(stack))["realtime_connections", hub]
    assert left < 10
    assert await scraped("realtime_handshakes_total", accepted) == {10}
    for client in clients:
        await client.__aexit__(None, None, None)

    async def all_left() -> bool:
        return (await scrape(stack))["realtime_connections", hub] == 0

    await eventually_there(all_left)
    server.stop()
    assert not list(tmp_path.glob("realtime-metrics-*"))


async def test_bridge_serves_its_metrics_on_the_port_of_its_option(stack: Stack):
    port = free_port()
    stack.start("bridge", str(ROOT / "manage.py"), "runbridge", "--metrics-port", str(port))
    # As if a connection had entered it: in a room that is unknown nothing is published, so there is no lag.
    stack.redis.hset(stack.key("{hub.thread.42}:room"), "position", 1)
    stack.add("chat:ended", {"thread_id": "42"})
    stack.add("no:such", {})

    async def delivered() -> bool:
        samples = await scrape(stack, port)
        return samples.get(("realtime_bus_messages_total", (("result", "delivered"),)), 0.0) == 1

    await eventually_there(delivered)
    samples = await scrape(stack, port)
    assert samples["realtime_dead_letters_total", (("reason", "unknown_event"),)] == 1
    assert samples["realtime_bus_lag_seconds_count", ()] >= 1
    assert samples["realtime_bridge_leading", ()] == 1
    assert (await stack.http("GET", "/metrics", port=port)).status == 401
    for path in ("/metrics/", "/metrics?name[]=up"):
        assert (await stack.http("GET", path, TOKEN, port=port)).status == 200
    assert (await stack.http("GET", "/", TOKEN, port=port)).status == 404


def test_connections_to_the_metrics_port_are_bounded_and_none_is_kept():
    with serve_metrics("127.0.0.1", 0) as port, ExitStack() as idle:
        before = threading.active_count()
        for _ in range(CONNECTIONS):
            idle.enter_context(socket.create_connection(("127.0.0.1", port)))
        while threading.active_count() < before + CONNECTIONS:
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", port)) as one_too_many:
            assert one_too_many.recv(1) == b""
        idle.close()
        while threading.active_count() > before:
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", port)) as one:
            one.sendall(b"GET /nothing HTTP/1.0\r\n\r\n")
            assert one.recv(12) == b"HTTP/1.0 404"


@pytest.mark.parametrize("value", ["-1", "70000"])
def test_port_out_of_range_is_an_error(value: str):
    with pytest.raises(CommandError, match="--metrics-port must be between 0 and 65535") as caught:
        call_command("runbridge", "--metrics-port", value)
    assert caught.value.returncode == 2


def test_port_that_is_taken_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(CommandError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            call_command("runbridge", "--metrics-port", port)
    assert caught.value.returncode == 2
