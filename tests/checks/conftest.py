from __future__ import annotations

import pytest


@pytest.fixture
def set_realtime(settings):
    def change(**values: object) -> None:
        settings.REALTIME = {**settings.REALTIME, **values}

    return change
