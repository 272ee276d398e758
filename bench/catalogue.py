"""The scenarios by their letters: what each measures, how it is shown, and its targets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench import mixed, scenarios
from bench.context import Context


@dataclass(frozen=True, slots=True)
class Metric:
    """A line of the table."""

    key: str
    title: str
    unit: str
    higher_is_better: bool = False
    must: float | None = None
    """Target as a ratio to Socket.IO."""
    stretch: float | None = None
    centrifuge: tuple[float, float] | None = None
    """Targets as ratios to Centrifuge: must, stretch."""
    must_be: float | None = None
    """Target in the metric's own unit."""
    times_channels: float | None = None
    """The target: how many times better than plain Channels."""


@dataclass(frozen=True, slots=True)
class Scenario:
    key: str
    title: str
    run: Callable[[Context], Awaitable[None]]
    metrics: tuple[Metric, ...]
    heavy: bool = False
    """Takes minutes with a slow peer, and the ratio is clear, so a slow peer is measured once."""


SCENARIOS = {
    scenario.key: scenario
    for scenario in (
        Scenario(
            "a", "burst: 1 room × {burst_connections:,} connections × {burst_events:,} events", scenarios.burst,
            (
                Metric(
                    "deliveries_per_cpu_second", "deliveries per CPU-second", "/s", True, 20, 40,
                    times_channels=200,
                ),
                Metric("deliveries_per_second", "deliveries per second", "/s", True),
            ),
            heavy=True,
        ),
        Scenario(
            "b", "paced: 1 room × {paced_connections:,} connections, {paced_rate:g} events/s", scenarios.paced,
            (
                Metric(
                    "cpu_us_per_delivery", "CPU per delivery", "µs", False, 0.65, 0.5, (0.65, 0.5),
                    times_channels=10,
                ),
                Metric("p50_ms", "latency p50", "ms"),
                Metric("p99_ms", "latency p99", "ms", False, 1.0),
            ),
            heavy=True,
        ),
        Scenario(
            "c",
            "chat: {threads:,} threads × {members}, {chat_messages:g} messages/s + {chat_typing:g} typing/s",
            scenarios.chat,
            (
                Metric("cpu_us_per_event", "CPU per event", "µs", False, 0.85, 0.6, (0.85, 0.6)),
                Metric("p50_ms", "latency p50", "ms", False, 1.0, 0.8),
                Metric("messages_p50_ms", "latency p50, messages", "ms"),
                Metric("typing_p50_ms", "latency p50, typing", "ms"),
                Metric("p99_ms", "latency p99", "ms", False, 0.5),
            ),
        ),
        Scenario(
            "d",
            "connect storm: {storm_connections:,} JWT handshakes, {storm_at_once} at a time",
            scenarios.connect_storm,
            (
                Metric("connects_per_second", "connects per second", "/s", True, 0.8, 1.2),
                Metric("cpu_us_per_connect", "CPU per connect", "µs", False, 0.5, 0.3, (3.0, 2.0)),
                Metric("p99_ms", "until ready, p99", "ms"),
            ),
        ),
        Scenario(
            "e", "idle: {idle_connections:,} connections with heartbeats", scenarios.idle,
            (
                Metric("kib_per_connection", "memory per connection", "KiB", must_be=11),
                Metric("rss_mib", "memory of the server process", "MiB", False, 0.9, centrifuge=(0.5, 0.5)),
                Metric("cpu_percent", "CPU", "%", False, 1.0),
            ),
        ),
        Scenario(
            "f", "bridge: {bridge_events:,} events, 1 subscriber", scenarios.bridge,
            (
                Metric("events_per_second", "events per second", "/s", True, 1.2),
                Metric("cpu_us_per_event", "CPU per event", "µs"),
                Metric("bridge_us_per_event", "of that the bridge", "µs"),
                Metric("redis_us_per_event", "CPU of Redis per event", "µs"),
            ),
        ),
        Scenario(
            "g",
            "reconnect storm: {recover_connections:,} clients, {recover_messages} messages missed",
            scenarios.reconnect_storm,
            (
                Metric("seconds_to_last", "time to the last", "s", False, 0.5, centrifuge=(2.0, 2.0)),
                Metric("recovered_percent", "recovered", "%", True, 1.0),
                Metric("cpu_us_per_client", "CPU per client", "µs"),
            ),
        ),
        Scenario(
            "h",
            "slow reader: {slow_connections:,} at {slow_rate:g} events/s of {slow_bytes:,} bytes, one does not read",
            scenarios.slow_reader,
            (
                Metric("p99_ms", "latency p99 of all other clients", "ms"),
                Metric("p99_without_ms", "the same without the slow reader", "ms"),
                Metric("rss_mib", "memory of the server process", "MiB"),
            ),
        ),
        Scenario(
            "i",
            "mixed day: {mixed_threads:,} threads of 2–4, {mixed_messages:g} messages/s, {mixed_typing:g} typing/s, "
            "{mixed_changes:g} changes of presence/s, {mixed_drops:g} clients/s drop and come back",
            mixed.mixed_day,
            (
                Metric("cpu_us_per_delivery", "CPU per delivered event", "µs"),
                Metric("p50_ms", "latency p50", "ms"),
                Metric("p99_ms", "latency p99", "ms"),
                Metric("p999_ms", "latency p99.9", "ms"),
            ),
        ),
        Scenario(
            "j", "two servers: c over two socket processes", scenarios.chat,
            (
                Metric("cpu_us_per_event", "CPU per event, all processes", "µs"),
                Metric("p50_ms", "latency p50", "ms"),
                Metric("p99_ms", "latency p99", "ms"),
            ),
        ),
    )
}  # fmt: skip
