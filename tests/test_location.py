from __future__ import annotations

import pytest
import redis
from redis import asyncio as aioredis

from realtime.embedded import EmbeddedRedis
from realtime.location import parse
from realtime.redis import client, close, execute


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


# --- Passwords -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["#", "a#b", "#a#", "12#4"])
@pytest.mark.parametrize(
    "url",
    ["redis://:{}@h:7/0", "rediss://:{}@h:7", "redis+sentinel://:{}@h/shop", "redis+cluster://:{}@h:7"],
)
def test_hash_in_a_password_needs_no_encoding(url: str, password: str):
    location = parse(url.format(password))
    for arguments in (location.arguments(), location.sync_arguments()):
        assert arguments["password"] == password
        assert arguments.get("host", "h") == "h"


def test_hash_in_an_option_or_a_path_needs_none_either():
    assert parse("redis+sentinel://h/shop?sentinel_password=a#b").password == "a#b"
    assert parse("unix:///run/#1.sock").arguments()["path"] == "/run/#1.sock"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://:se/cret@h:7/0", "write / as %2F"),
        ("redis://:12/cret@h:7/0", "write / as %2F"),  # port 12 of this machine, else
        ("redis://cret/x:12@h:7/0", "write / as %2F"),
        ("redis+sentinel://:se/cret@h/shop", "write / as %2F"),
        ("redis+cluster://:se/cret@h:7", "write / as %2F"),
        ("redis://:se[cret@h:7/0", r"write \[ as %5B"),
        ("redis://:se\N{ACCOUNT OF}cret@h:7/0", "beyond ASCII"),
    ],
)
def test_character_that_must_be_encoded_is_named_and_the_password_is_not(url: str, says: str):
    with pytest.raises(ValueError, match=says) as caught:
        parse(url)
    assert "cret" not in str(caught.value)


async def test_hash_in_a_password_opens_a_real_server(settings):
    with EmbeddedRedis() as server:
        url = server.url.replace("unix://", "unix://:a#b@")
        with redis.Redis.from_url(server.url) as plain:
            plain.config_set("requirepass", "a#b")
        settings.REALTIME = {**settings.REALTIME, "REDIS_URL": url}
        try:
            assert await client().ping()
            assert await execute("EXISTS", "x") == 0
        finally:
            await close()
