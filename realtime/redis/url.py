"""Where Redis is, as `REDIS_URL` says: one server, the primary that Sentinels watch over, or a Cluster."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from math import inf
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

import redis.asyncio.sentinel
import redis.connection
import redis.sentinel
from redis import asyncio as aioredis
from redis.asyncio.connection import parse_url as parse_async_url
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

REDIS_PORT = 6379
SENTINEL_PORT = 26379
SENTINEL_TIMEOUT = 0.5
"""Seconds to wait for one Sentinel before the next one is asked: its host may have died with the primary."""

Address = tuple[str, int]

_POOL_OPTIONS: dict[str, Callable[[Any], float]] = {"max_connections": int, "timeout": float}
_OPTIONS = frozenset(_POOL_OPTIONS) | {
    *("db", "username", "password", "client_name", "protocol"),
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval"),
}
_TLS_OPTIONS = frozenset(
    {f"ssl_{name}" for name in ("ca_certs", "ca_data", "cert_reqs", "certfile", "keyfile", "check_hostname")}
)
_TLS_OPTIONS_OF_ONE_SERVER = frozenset({"ssl_ca_path", "ssl_ciphers", "ssl_password"}) & set(
    signature(aioredis.SSLConnection.__init__).parameters
)
"""redis-py's client for a Cluster does not have them, and older versions of redis-py have not all of them."""
_NETLOC = re.compile(r"([^][]*@)?(\[[^][]*\]|[^][]*)(:\d*)?")
_HOSTS = re.compile(r"(.*?://(?:[^/?]*@)?)([^/?]*)(.*)", re.DOTALL)
_LEAST = {"db": 0, "health_check_interval": 0, "max_connections": 1}
LEAST_TIMEOUT = 0.4
"""Seconds: a bridge waits up to half of it in Redis for an entry (`realtime.bridge.stream_delivery.READ_BLOCK`)."""
_SECONDS = ("socket_timeout", "socket_connect_timeout", "timeout")


@dataclass(frozen=True)
class Location:
    """A parsed `REDIS_URL`."""

    url: str
    """The URL of the one server; for several, credentials, database and options of each."""
    sentinels: tuple[Address, ...] = ()
    nodes: tuple[Address, ...] = ()
    """The servers of a Cluster that are asked for all servers."""
    service: str = ""
    """The Sentinels' name for the primary."""
    username: str | None = None
    """For the Sentinels."""
    password: str | None = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of redis-py's asyncio connections."""
        parsed = dict(parse_async_url(self.url))
        return self._arguments(parsed, redis.asyncio.sentinel, self.primary, _greet_async)

    def sync_arguments(self) -> dict[str, Any]:
        """The arguments of redis-py's synchronous connections."""
        parsed = redis.connection.parse_url(self.url)  # type: ignore[no-untyped-call]
        return self._arguments(parsed, redis.sentinel, self.sync_primary, _greet)

    def pool_arguments(self) -> dict[str, Any]:
        """The arguments of connection pools."""
        parsed = redis.connection.parse_url(self.url)  # type: ignore[no-untyped-call]
        # redis-py 5 leaves a time-out as text.
        return {name: kind(parsed[name]) for name, kind in _POOL_OPTIONS.items() if name in parsed}

    def _arguments(
        self, parsed: dict[str, Any], kinds: Any, primary: Callable[[], Any], greet: Callable[[Any], Any]
    ) -> dict[str, Any]:
        parsed = {name: value for name, value in parsed.items() if name not in _POOL_OPTIONS}
        if self.sentinels:
            parsed.pop("host", None)
            encrypted, plain = kinds.SentinelManagedSSLConnection, kinds.SentinelManagedConnection
            parsed["connection_class"] = encrypted if "connection_class" in parsed else plain
            parsed["connection_pool"] = _Primary(self.service, primary)
            parsed["redis_connect_func"] = greet
        if self.nodes:
            parsed["host"], parsed["port"] = self.nodes[0]
        return parsed

    async def primary(self) -> Address:
        """The address of the primary, from the first Sentinel that answers. Raises `redis.RedisError`."""
        retry = AsyncRetry(NoBackoff(), 0)
        sentinel = redis.asyncio.sentinel.Sentinel(
            self.sentinels, sentinel_kwargs={**self.sentinel_options, "retry": retry}
        )  # type: ignore[no-untyped-call]
        try:
            host, port = await sentinel.discover_master(self.service)
            return host, port
        finally:
            for each in sentinel.sentinels:
                await each.aclose()

    def sync_primary(self) -> Address:
        """`primary` from synchronous code."""
        retry = Retry(NoBackoff(), 0)
        sentinel = redis.sentinel.Sentinel(
            self.sentinels, sentinel_kwargs={**self.sentinel_options, "retry": retry}
        )  # type: ignore[no-untyped-call]
        try:
            host, port = sentinel.discover_master(self.service)  # type: ignore[no-untyped-call]
            return host, port
        finally:
            for each in sentinel.sentinels:
                each.close()

    @property
    def database(self) -> int:
        """The number of the database that keys are in. Pub/Sub has none."""
        return int(redis.connection.parse_url(self.url).get("db") or 0)  # type: ignore[no-untyped-call]

    @property
    def sentinel_options(self) -> dict[str, Any]:
        """What redis-py's connections to the Sentinels take."""
        parsed = redis.connection.parse_url(self.url)  # type: ignore[no-untyped-call]
        encryption = {name: value for name, value in parsed.items() if name.startswith("ssl_")}
        return {
            "socket_timeout": SENTINEL_TIMEOUT,
            "socket_connect_timeout": SENTINEL_TIMEOUT,
            "username": self.username,
            "password": self.password,
            "ssl": self.url.startswith("rediss"),
            **encryption,
        }


@lru_cache(maxsize=8)
def parse(url: str) -> Location:
    """Parse a `REDIS_URL`. Raises `ValueError`, whose text never holds a password."""
    url = url.replace("#", "%23")  # an address of Redis has no fragment: it belongs to a password
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ValueError("it has no scheme")
    tls, _, kind = scheme.partition("+")
    alone, hosts = _set_apart(url) if kind else (url, "")
    _check_characters(alone, scheme)
    if scheme in {"redis", "rediss", "unix"}:
        location = Location(url)
    elif tls in {"redis", "rediss"} and kind == "sentinel":
        location = _parse_sentinels(alone, hosts, tls)
    elif tls in {"redis", "rediss"} and kind == "cluster":
        location = _parse_cluster(alone, hosts, tls)
    else:
        expected = "redis, rediss, unix, redis+sentinel, redis+cluster or one of these two with rediss"
        raise ValueError(f"expected the scheme {expected}, got {scheme!r}")
    _check_options(location)
    if not kind and scheme != "unix":
        _check_numbers(urlsplit(url))
    elif not kind and not urlsplit(url).path.strip("/"):
        raise ValueError("the path of the socket is missing")
    try:
        arguments = location.sync_arguments()
        arguments.pop("connection_class", redis.Connection)(**arguments)
    except (ValueError, AttributeError, RedisError):
        # What redis-py says may quote all of it.
        raise ValueError("one of the values of its options is not right") from None
    return location


def _set_apart(url: str) -> tuple[str, str]:
    """A URL with one host in place of several, and those: newer Pythons refuse to split one with `b,[::1]:3` in it."""
    before, hosts, after = _HOSTS.fullmatch(url).groups()  # type: ignore[union-attr]  # it fits any URL
    return f"{before}host{after}", hosts


def _check_characters(url: str, scheme: str) -> None:
    """Refuse a password that would be parsed as something else. (urllib quotes it in its errors.)"""
    parts = _split(url)
    if parts is None:
        raise ValueError(
            "a host cannot be read: in a user name or password write [ as %5B, ] as %5D, and "
            "characters beyond ASCII percent-encoded"
        )
    if "@" in parts.path and scheme != "unix":
        raise ValueError("a / comes before the @: in a user name or password write / as %2F")


def _check_numbers(parts: SplitResult) -> None:
    """Refuse what redis-py would pass over, and use its defaults."""
    if _port(parts) is None:
        raise ValueError("the port is not a number from 1 to 65535")
    if (database := parts.path.strip("/")) and not database.isdecimal():
        raise ValueError("the database is not a number")


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port or (None if parts.port == 0 else REDIS_PORT)
    except ValueError:
        return None


def _split(url: str) -> SplitResult | None:
    """The parts; None if the host cannot be read. (Pythons differ in the misplaced brackets that they refuse.)"""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return parts if _NETLOC.fullmatch(parts.netloc) else None


def _check_options(location: Location) -> None:
    """Refuse options that do not fit. (redis-py takes any option, and raises when it connects.)"""
    parts = urlsplit(location.url)
    if "@" in parts.query:
        raise ValueError("an @ follows a ?: in a password write ? as %3F, and in an option write @ as %40")
    permitted = _permitted(parts.scheme, is_cluster=bool(location.nodes))
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in permitted:
            needs_tls = name.startswith("ssl_") and parts.scheme != "rediss"
            why = "is for rediss:// (TLS)" if needs_tls else "is not known here"
            raise ValueError(f"the option {name[:40]!r} {why}; permitted: {', '.join(sorted(permitted))}")
        if not _is_fit(name, value):
            raise ValueError(f"the option {name!r} has a value that it cannot have")


def _permitted(scheme: str, *, is_cluster: bool) -> frozenset[str]:
    permitted = _OPTIONS - {"socket_keepalive"} if scheme == "unix" else _OPTIONS
    if scheme == "rediss":
        permitted |= _TLS_OPTIONS if is_cluster else _TLS_OPTIONS | _TLS_OPTIONS_OF_ONE_SERVER
    return permitted - {"db", "timeout"} if is_cluster else permitted


def _is_fit(name: str, value: str) -> bool:
    try:
        if name in _SECONDS:
            return (LEAST_TIMEOUT if name == "socket_timeout" else 0) < float(value) < inf
        if name in _LEAST:
            return int(value) >= _LEAST[name]
    except ValueError:
        return False
    if name == "protocol":
        return value in {"2", "3"}
    return value != "" and (name != "client_name" or " " not in value)


def _parse_sentinels(alone: str, hosts: str, tls: str) -> Location:
    parts = urlsplit(alone)
    credentials, at, _ = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("the name that the Sentinels have for the primary is missing")
    if database and not database.isdecimal():
        raise ValueError("the database is not a number")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    username, password = query.pop("sentinel_username", None), query.pop("sentinel_password", None)
    return Location(
        f"{tls}://{credentials}{at}/{database or 0}?{urlencode(query)}",
        sentinels=_addresses(hosts, SENTINEL_PORT),
        service=service,
        username=username,
        password=password,
    )


def _parse_cluster(alone: str, hosts: str, tls: str) -> Location:
    parts = urlsplit(alone)
    credentials, at, _ = parts.netloc.rpartition("@")
    if parts.path.strip("/") not in {"", "0"}:
        raise ValueError("a Cluster has one database, 0")
    nodes = _addresses(hosts, REDIS_PORT)
    return Location(f"{tls}://{credentials}{at}/0?{parts.query}", nodes=nodes)


def _addresses(hosts: str, port: int) -> tuple[Address, ...]:
    """`a:1,b:2` as addresses; IPv6 in brackets."""
    found = []
    for item in hosts.split(","):
        parts = _split(f"//{item.strip()}")
        if parts is None:
            raise ValueError("a host cannot be read: expected host, host:port or [IPv6]:port")
        if not parts.hostname:
            raise ValueError("a host is missing")
        found.append((parts.hostname, parts.port or port))
    return tuple(found)


# --- Connections to the primary ------------------------------------------------------------------------
#
# They are redis-py's, which ask the Sentinels whenever they connect, and disconnect from a primary that was demoted.
# Ours only ask the server for its role, too, as Sentinel's guide for clients demands
# (https://redis.io/docs/latest/develop/reference/sentinel-clients/): a Sentinel may be the last to learn of a failover.


@dataclass(frozen=True)
class _Primary:
    """What redis-py's Sentinel connections ask of their pool."""

    service_name: str
    get_master_address: Callable[[], Any]
    is_master: bool = True
    check_connection: bool = False


async def _greet_async(connection: aioredis.Connection) -> None:
    await connection.on_connect()
    await connection.send_command("ROLE", check_health=False)
    _require_primary(await connection.read_response())


def _greet(connection: redis.Connection) -> None:
    connection.on_connect()  # type: ignore[no-untyped-call]
    connection.send_command("ROLE", check_health=False)  # type: ignore[no-untyped-call]
    _require_primary(connection.read_response())


def _require_primary(role: Any) -> None:
    if role[0] not in {b"master", "master"}:
        raise RedisConnectionError("the server is not the primary (any more)")
