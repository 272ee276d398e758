"""Failures that are injected, and how many were counted."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY


def failures(task: str) -> float:
    return REGISTRY.get_sample_value("realtime_task_failures_total", {"task": task}) or 0.0


class Failing:
    """Makes a function fail once, and counts how often it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.calls = 0
        original = getattr(owner, name)

        def failing(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("injected")
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, failing)
