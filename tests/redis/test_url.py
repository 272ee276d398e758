from __future__ import annotations

from inspect import signature

import pytest
import redis
from django.core.exceptions import ImproperlyConfigured
from redis import asyncio as aioredis

from realtime.redis.client import client, close, execute, location
from realtime.redis.url import parse
from realtime.testing.embedded_redis import EmbeddedRedis


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


@pytest.mark.parametrize(
    "hosts", ["[::1]:3,[fd00::2]", "a,[fd00::2]:3", "[::1],a,b:3"], ids=["both", "second", "first"]
)
@pytest.mark.parametrize("credentials", ["", "me:pw%40@", "me:pw@pw@"])
def test_servers_may_be_addresses_of_ipv6(hosts: str, credentials: str):
    sentinels = parse(f"redis+sentinel://{credentials}{hosts}/shop").sentinels
    nodes = parse(f"redis+cluster://{credentials}{hosts}").nodes
    assert [host for host, _ in sentinels] == [host for host, _ in nodes]
    assert {"::1", "fd00::2", "a"} & {host for host, _ in nodes}
    assert [port for _, port in nodes if port != 6379] == [3]


@pytest.mark.parametrize("host", ["x[::1]", "[::1]x", "[::1", "::1]", "[x]", "[::1][::1]", "a[b]"])
@pytest.mark.parametrize(
    "url", ["redis://me:cret@{}/0", "redis+sentinel://me:cret@a,{}/shop", "redis+cluster://me:cret@{},a"]
)
def test_misplaced_bracket_is_refused(url: str, host: str):
    with pytest.raises(ValueError, match="a host cannot be read") as caught:
        parse(url.format(host))
    assert "cret" not in str(caught.value)


def test_sentinels_have_credentials_of_their_own():
    location = parse("redis+sentinel://a/shop?sentinel_username=watch&sentinel_password=s")
    assert (location.username, location.password) == ("watch", "s")
    assert location.arguments().get("password") is None


def test_tls_to_the_server_that_is_the_primary():
    location = parse("rediss+sentinel://a/shop?ssl_ca_certs=/ca.pem")
    assert issubclass(location.arguments()["connection_class"], aioredis.SSLConnection)
    assert issubclass(location.sync_arguments()["connection_class"], redis.SSLConnection)
    options = location.sentinel_options
    assert (options["ssl"], options["ssl_ca_certs"]) == (True, "/ca.pem")


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
        ("redis://:se[cre]t@h:7/0", r"write \[ as %5B"),
        ("redis+sentinel://:se[cre]t@h,[::1]/shop", r"write \[ as %5B"),
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


# --- Options -----------------------------------------------------------------------------------------

SCHEMES = {
    "redis": "redis://h/0",
    "rediss": "rediss://h/0",
    "unix": "unix:///run/redis.sock",
    "sentinel": "redis+sentinel://a,b/shop",
    "tls sentinel": "rediss+sentinel://a,b/shop",
    "cluster": "redis+cluster://a,b",
    "tls cluster": "rediss+cluster://a,b",
}


NOT_IN_REDIS_PY_5 = " ".join(
    f"{name}=x"
    for name in ("ssl_password", "ssl_ca_path")
    if name in signature(aioredis.SSLConnection).parameters
)


def names(schemes: str, options: str) -> list[tuple[str, str]]:
    return [(scheme.strip(), option) for scheme in schemes.split(",") for option in options.split()]


@pytest.mark.parametrize(
    ("scheme", "option"),
    [
        *names("redis, rediss, unix, sentinel, tls sentinel", "db=3 timeout=2"),
        *names(
            ", ".join(SCHEMES),
            "socket_timeout=2.5 socket_connect_timeout=2 health_check_interval=0 max_connections=1 "
            "client_name=ours username=me password=pw protocol=2 protocol=3",
        ),
        *names("redis, rediss, sentinel, cluster", "socket_keepalive=0"),
        *names(
            "rediss, tls sentinel, tls cluster", "ssl_ca_certs=/ca ssl_cert_reqs=none ssl_check_hostname=0"
        ),
        *names("rediss, tls sentinel", NOT_IN_REDIS_PY_5),
        *names("sentinel, tls sentinel", "sentinel_username=me sentinel_password=%40"),
    ],
)
def test_permitted_option_is_what_connections_and_pools_get(scheme: str, option: str):
    location = parse(f"{SCHEMES[scheme]}?{option}")
    name = option.partition("=")[0]
    for arguments in (location.arguments(), location.sync_arguments()):
        assert (name in arguments) != (name in location.pool_arguments() or name.startswith("sentinel_"))
        kind = arguments.pop("connection_class", None)
        if kind is not None:
            kind(**arguments)
    assert (name in location.pool_arguments()) == (name in {"max_connections", "timeout"})


@pytest.mark.parametrize(
    ("scheme", "option"),
    [
        *names(
            ", ".join(SCHEMES),
            "decode_responses=1 encoding=x encoding_errors=x retry_on_timeout=1 retry_on_error=x retry=1 "
            "socket_type=1 parser_class=x nonsense=1 host=x path=/x connection_class=x Socket_Timeout=1 "
            "decode_responses=",
        ),
        *names(
            "redis, unix, sentinel, cluster", "ssl_ca_certs=/ca ssl_cert_reqs=none ssl_check_hostname=0 ssl=1"
        ),
        *names("unix", "socket_keepalive=1"),
        *names("cluster, tls cluster", "db=1 timeout=2 ssl_password=x sentinel_password=x"),
        *names("redis, unix", "sentinel_username=x"),
    ],
)
def test_other_options_are_refused_by_name(scheme: str, option: str):
    with pytest.raises(ValueError, match=f"option '{option.partition('=')[0]}'"):
        parse(f"{SCHEMES[scheme]}?client_name=x&{option}")


@pytest.mark.parametrize(
    "option",
    [
        *(
            "socket_timeout=0",
            "socket_timeout=-1",
            "socket_timeout=nan",
            "socket_timeout=inf",
            "socket_timeout=",
        ),
        *(
            "socket_connect_timeout=soon",
            "timeout=0",
            "max_connections=0",
            "max_connections=1.5",
            "db=-1",
            "db=x",
        ),
        *("health_check_interval=-1", "client_name=", "client_name=a+b", "protocol=1"),
    ],
)
def test_value_that_an_option_cannot_have_is_refused_by_name_and_not_quoted(option: str):
    with pytest.raises(ValueError, match=f"option '{option.partition('=')[0]}' has a value"):
        parse(f"redis://:secret@h/0?{option}")


@pytest.mark.parametrize(
    "url", ["redis://:se?cret@h/0", "redis://:se?cret=x@h/0", "rediss://h?ssl_cert_reqs=secret"]
)
def test_refusal_has_nothing_of_a_password(url: str):
    with pytest.raises(ValueError, match=r"option|scheme|@") as caught:
        parse(url)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://host", "expected the scheme redis, .*, got 'http'"),
        (" redis://host", "expected the scheme redis, .*, got ' redis'"),
        ("unix+cluster://host", "expected the scheme redis, .*, got 'unix.cluster'"),
        ("host:6379", "it has no scheme"),
        *(
            (f"redis://host:{port}/0", "the port is not a number from 1 to 65535")
            for port in ("port", "0", "65536")
        ),
        # redis-py would use database 0, and 1.
        *(
            (f"rediss://host/{database}", "the database is not a number")
            for database in ("shop", "-1", "0/1")
        ),
    ],
)
def test_what_is_wrong_is_named(url: str, said: str):
    with pytest.raises(ValueError, match=said):
        parse(url)


def test_connection_with_a_wrong_address_names_the_setting(settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis://:secret@host/shop"}
    with pytest.raises(ImproperlyConfigured, match="REDIS_URL cannot be used: the database is not a number"):
        location()
