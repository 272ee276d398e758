"""What the checks say of Redis and of the channel layer."""

from __future__ import annotations

import pytest

from tests.checking import ids, startup


def test_channel_layer_in_memory_is_refused(settings):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    assert ids() == {"realtime.E008"}


@pytest.mark.parametrize(
    "url",
    [
        "foo://x",
        "redis://host:port/0",
        "unix://:secret@",
        "redis",
        "redis+sentinel://:secret@host:26379",
        "redis+sentinel://:secret@host:port/primary",
        "redis+sentinel://:secret@/primary",
        "redis+sentinel://:secret@host/primary/first",
        "unix+sentinel://:secret@host/primary",
        "redis+cluster://:secret@host/1",
        "redis+cluster://:secret@host:port",
    ],
)
def test_redis_url_that_is_none_is_an_error_that_does_not_quote_it(settings, url: str):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": f"{url}?password=secret"}
    found = [message for message in startup() if message.id == "realtime.E010"]
    assert len(found) == 1
    assert "secret" not in str(found[0])


@pytest.mark.parametrize("name", ["decode_responses", "ssl_ca_certs", "nonsense"])
def test_option_of_redis_url_that_is_not_permitted_is_an_error_that_names_it(set_realtime, name: str):
    set_realtime(REDIS_URL=f"redis://:secret@host/0?socket_timeout=3&{name}=secret")
    found = [message for message in startup() if message.id == "realtime.E010"]
    assert len(found) == 1
    assert repr(name) in found[0].msg
    assert "secret" not in str(found[0])


def test_cluster_wants_our_own_channel_layer(settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis+cluster://a,b:7001"}
    assert ids() == set()
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer"}}
    assert ids() == {"realtime.E012", "realtime.W002"}


@pytest.mark.parametrize(
    "url",
    [
        "redis://host/3",
        "redis://host?db=3",
        "rediss://:secret@host:6380/3",
        "unix:///run/redis.sock?db=3",
        "redis+sentinel://a,b/primary/3",
    ],
)
def test_database_other_than_0_wants_a_prefix_of_its_own(set_realtime, url):
    set_realtime(REDIS_URL=url)
    (error,) = startup()
    assert error.id == "realtime.E016"
    assert "database 3" in error.msg
    assert "secret" not in error.msg
    set_realtime(PREFIX="shop")
    assert ids() == set()
