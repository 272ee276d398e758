from __future__ import annotations

import pytest
import redis
from redis import asyncio as aioredis

from realtime.location import parse


@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        ("redis://r:6380/2", {"host": "r", "port": 6380, "db": 2}),
        ("unix:///run/redis.sock", {"path": "/run/redis.sock"}),
        ("rediss://me:pw@r", {"host": "r", "username": "me", "password": "pw"}),
    ],
)
def test_one_server_is_what_redis_py_makes_of_its_url(url: str, arguments: dict[str, object]):
    location = parse(url)
    assert arguments.items() <= location.arguments().items()
    assert arguments.items() <= location.sync_arguments().items()
    assert not location.sentinels


def test_sentinels_are_asked_for_the_primary_and_not_connected_to():
    location = parse("redis+sentinel://me:pw%40@a:1,b,[::1]:3/shop/2?health_check_interval=7")
    assert location.sentinels == (("a", 1), ("b", 26379), ("::1", 3))
    assert location.service == "shop"
    for arguments in (location.arguments(), location.sync_arguments()):
        assert (arguments["username"], arguments["password"], arguments["db"]) == ("me", "pw@", 2)
        assert arguments["health_check_interval"] == 7
        assert "host" not in arguments


def test_sentinels_have_credentials_of_their_own():
    location = parse("redis+sentinel://a/shop?sentinel_username=watch&sentinel_password=s")
    assert (location.username, location.password) == ("watch", "s")
    assert location.arguments().get("password") is None


def test_tls_to_whoever_is_the_primary():
    location = parse("rediss+sentinel://a/shop?ssl_ca_certs=/ca.pem")
    assert issubclass(location.arguments()["connection_class"], aioredis.SSLConnection)
    assert issubclass(location.sync_arguments()["connection_class"], redis.SSLConnection)
    assert location._sentinel["ssl"] is True
    assert location._sentinel["ssl_ca_certs"] == "/ca.pem"
