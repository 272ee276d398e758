"""Moments as the admin shows them, also those at the ends of time."""

from __future__ import annotations

import pytest
from django.test import Client

from presence.admin.display import instant, moment, since, until
from presence.recorder.recorder import Recorder
from tests.presence.recording import append

ZONES = ["Asia/Tokyo", "America/Sao_Paulo"]
EXTREMES = [253_402_300_799.0, 1e300, -1e300, float("inf"), float("-inf"), float("nan")]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("seconds", EXTREMES)
def test_each_number_of_seconds_is_shown(settings, zone: str, seconds: float):
    settings.TIME_ZONE = zone
    assert moment(instant(seconds))
    assert since(seconds)
    assert isinstance(until(seconds), str)


@pytest.mark.django_db
@pytest.mark.usefixtures("realtime_redis")
@pytest.mark.filterwarnings("ignore:No directory at")
@pytest.mark.parametrize("zone", ZONES)
def test_change_at_the_end_of_time_does_not_end_the_page(settings, admin_client: Client, zone: str):
    settings.TIME_ZONE = zone
    append("7", at="9999-12-31T23:59:59Z")
    append("8", at="0001-01-01T00:00:00Z")
    Recorder().step()
    for page in ("presencerecord", "presencetransition", "availability"):
        assert admin_client.get(f"/admin/presence/{page}/").status_code == 200, page
