"""What metrics are where prometheus_client is not installed: a backbone that only publishes has no `/metrics`."""

from __future__ import annotations

from typing import Any


class Metric:
    """Counts nothing. It stands for each class of metrics, and for what `labels` returns."""

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def labels(self, *values: object) -> Metric:
        """The metric of these labels."""
        return self

    def _nothing(self, *values: object) -> None: ...

    inc = dec = set = observe = _nothing


Counter = Gauge = Histogram = Metric
