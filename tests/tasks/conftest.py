from __future__ import annotations

import pytest

from realtime.server import vitals
from realtime.tasks import supervision


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "PAUSE", 0.01)
    monkeypatch.setattr("realtime.connections.deadlines.PAUSE", 0.01)
    monkeypatch.setattr(vitals, "SECONDS", 0.01)
