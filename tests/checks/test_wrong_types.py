"""Settings of a wrong type: an error with a hint, and no traceback."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import run_checks

from tests.checking import production, startup
from tests.checks.test_startup import PUBLIC_KEY, ids


@pytest.mark.parametrize(
    "layers",
    [
        None,
        "",
        -1,
        [],
        {"default": None},
        {"default": {}},
        {"default": {"BACKEND": None}},
        {"default": {"BACKEND": "no.such"}},
        {"default": {"BACKEND": "realtime.layers.RoomChannelLayer", "CONFIG": None}},
        {"default": {"BACKEND": "realtime.layers.RoomChannelLayer", "CONFIG": {"hosts": []}}},
        *(
            {"default": {"BACKEND": "realtime.layers.RoomChannelLayer", "CONFIG": {option: value}}}
            for option, value in (
                ("expiry", "60"),
                ("expiry", 0),
                ("expiry", float("nan")),
                ("expiry", float("inf")),
                ("expiry", True),
                ("capacity", None),
                ("capacity", 0),
                ("capacity", 1.5),
                ("channel_capacity", {"worker*": "10"}),
                ("channel_capacity", {1: 10}),
                ("channel_capacity", [("worker*", 10)]),
            )
        ),
    ],
    ids=repr,
)
def test_channel_layer_that_cannot_be_made_is_an_error(settings, layers: object):
    settings.CHANNEL_LAYERS = layers
    assert ids() == {"realtime.E008"}


@pytest.mark.parametrize("given", ["x", ["x"], ("x",)], ids=repr)
def test_simple_jwt_that_is_no_dict_is_an_error(settings, given: object):
    settings.SIMPLE_JWT = given
    assert ids() == {"realtime.E009"}
    for side in ("sockets", "web"):
        assert not [message for message in production(side) if "JWT" in str(message.msg)]


@pytest.mark.filterwarnings("ignore:Overriding setting DATABASES")
@pytest.mark.parametrize("given", [[], {}, ["a"]], ids=repr)
def test_signing_key_that_is_no_text_is_no_traceback(settings, given: object):
    keys = {"ALGORITHM": "RS256", "VERIFYING_KEY": PUBLIC_KEY, "SIGNING_KEY": given}
    settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, **keys}
    settings.DATABASES = {}
    assert all(message.hint for message in production())


@pytest.mark.parametrize(
    "values",
    [
        {"PREFIX": "\udcff"},
        {"AWAY_AFTER": "\udcff"},
        {"HUB_ROLES": "\udcff"},
        {"EVENTS": ["\udcff"]},
        {"LIMITS": {"RATE": "\udcff"}},
        {"\udcff": 1},
        {1: 1},
    ],
    ids=repr,
)
def test_bytes_of_the_environment_that_are_no_text_are_an_error(settings, values: dict[Any, Any]):
    settings.REALTIME = {**settings.REALTIME, **values}
    assert ids() == {"realtime.E001"}
    assert all(str(message).encode() for message in startup())


def test_presence_needs_time_zones(settings):
    settings.USE_TZ = False
    assert [message.id for message in run_checks(tags=["realtime"])] == ["realtime.E033"]
