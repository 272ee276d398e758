"""The metrics of a relay at `/metrics`, read from its numbers whenever they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from realtime.outbox.relay import Relay

_LABELS = ["database"]


class OutboxCollector(Collector):
    """The numbers of all relays of this process."""

    def __init__(self, relays: Sequence[Relay]) -> None:
        self._relays = relays

    def collect(self) -> Iterator[Metric]:
        backlog = GaugeMetricFamily("realtime_outbox_backlog", "Messages in the outbox", labels=_LABELS)
        age = GaugeMetricFamily(
            "realtime_outbox_oldest_seconds", "Age of the oldest message in the outbox", labels=_LABELS
        )
        sent = CounterMetricFamily("realtime_outbox_sent", "Messages that the relay has sent", labels=_LABELS)
        failures = CounterMetricFamily(
            "realtime_outbox_failures", "Attempts at which Redis or the database failed", labels=_LABELS
        )
        for relay in self._relays:
            numbers, labels = relay.numbers, [relay.using]
            backlog.add_metric(labels, numbers.backlog)
            age.add_metric(labels, numbers.age)
            sent.add_metric(labels, numbers.sent)
            failures.add_metric(labels, numbers.failures)
        yield from (backlog, age, sent, failures)


def register(relays: Sequence[Relay]) -> None:
    """Show the numbers of these relays at `/metrics`."""
    REGISTRY.register(OutboxCollector(relays))
