"""The production checklist: `manage.py check --deploy`, on both sides (docs/deployment.md).

Numbers start at 101. A warning is about a setting that is wrong in production; an info is about one that may be right,
and says why it matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import msgspec
from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Info, register
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured

from realtime.conf import Conf, Limits, conf
from realtime.redis import url as location


@register("realtime", deploy=True)
def check_production(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find settings that are right for development and wrong in production, or worth a thought there."""
    try:
        current = conf()
    except ImproperlyConfigured:
        return []  # realtime.E001 reports it
    return [
        *_handshake(current),
        *_tokens(),
        *_redis(current.redis_url),
        *_operation(current),
        *_limits(current.limits),
        *(_web() if settings.DATABASES else ()),
    ]


def _handshake(current: Conf) -> Iterator[CheckMessage]:
    if current.query_token:
        yield CheckWarning(
            "Handshakes with ?token= are accepted",
            hint="An address ends up in the logs of proxies. Unset REALTIME_QUERY_TOKEN and DEBUG.",
            id="realtime.W101",
        )
    if plain := [origin for origin in current.allowed_origins if not origin.startswith("https://")]:
        yield CheckWarning(
            f"ALLOWED_ORIGINS lists origins without https: {', '.join(plain)}",
            hint="List the pages of your product, each as https://host[:port].",
            id="realtime.W102",
        )
    if not current.allowed_origins:
        yield CheckWarning(
            "ALLOWED_ORIGINS is empty: no browser can connect",
            hint="List the pages of your product, each as https://host[:port].",
            id="realtime.W102",
        )
    if not current.trusted_proxies:
        yield Info(
            "TRUSTED_PROXIES is empty: handshakes are not limited by address",
            hint="Behind a proxy that sets X-Forwarded-For, set it to the proxy's addresses.",
            id="realtime.I103",
        )


def _tokens() -> Iterator[CheckMessage]:
    jwt: dict[str, Any] = settings.SIMPLE_JWT
    symmetric = str(jwt["ALGORITHM"]).startswith("HS")
    if symmetric:
        yield Info(
            f"JWT_ALGORITHM is {jwt['ALGORITHM']}: every process that can check a token can also make one",
            hint="With EdDSA, ES256 or RS256 the socket server needs the public key only.",
            id="realtime.I104",
        )
    elif jwt.get("SIGNING_KEY") and not settings.DATABASES:
        yield CheckWarning(
            "JWT_SIGNING_KEY is set on the socket side, which signs nothing",
            hint="Keep it on the web side; JWT_VERIFYING_KEY or JWT_JWK_URL is enough here.",
            id="realtime.W105",
        )
    if missing := [name for name in ("AUDIENCE", "ISSUER") if not jwt.get(name)]:
        yield CheckWarning(
            f"{' and '.join(f'JWT_{name}' for name in missing)} not set",
            hint="Without them, a token that the same key signed for another service is accepted here.",
            id="realtime.W106",
        )
    if (url := str(jwt.get("JWK_URL") or "")) and urlsplit(url).scheme != "https":
        yield CheckWarning(
            "JWT_JWK_URL is not https",
            hint="An attacker who can change the response can sign tokens. Use an https:// address.",
            id="realtime.W107",
        )


def _redis(url: str) -> Iterator[CheckMessage]:
    try:
        parts, arguments = urlsplit(url), location.parse(url).sync_arguments()
    except ValueError:
        return  # realtime.E010 reports it
    if parts.scheme == "unix" or _is_loopback(parts.hostname or ""):
        return
    if not arguments.get("password"):
        yield CheckWarning(
            "REDIS_URL has no password",
            hint="Give each part a Redis user of its own (docs/security.md).",
            id="realtime.W108",
        )
    if not parts.scheme.startswith("rediss"):
        yield Info(
            "REDIS_URL is not rediss://: messages and the password cross the network unencrypted",
            hint="Use TLS unless the network is private.",
            id="realtime.I109",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _operation(current: Conf) -> Iterator[CheckMessage]:
    if not current.metrics_token and not settings.DATABASES:
        yield CheckWarning(
            "REALTIME_METRICS_TOKEN is not set: every client that reaches the port can read /metrics",
            hint="Set it, and configure it in Prometheus as the bearer token.",
            id="realtime.W110",
        )
    if not current.drain_seconds:
        yield CheckWarning(
            "REALTIME_DRAIN_SECONDS is 0: after a restart all clients reconnect at the same moment",
            hint="Set it to some seconds, and let the process manager wait at least 10 s longer before it kills.",
            id="realtime.W111",
        )


def _limits(limits: Limits) -> Iterator[CheckMessage]:
    off = [
        f"REALTIME_LIMIT_{field.encode_name}"
        for field in msgspec.structs.fields(Limits)
        if field.default and not getattr(limits, field.name)
    ]
    if off:
        yield CheckWarning(
            f"Limits are switched off: {', '.join(off)}",
            hint="0 means no limit: one client can then take the capacity of all other clients.",
            id="realtime.W112",
        )


def _web() -> Iterator[CheckMessage]:
    if "*" in settings.ALLOWED_HOSTS:
        yield CheckWarning(
            "ALLOWED_HOSTS contains *, so that every host name is accepted",
            hint="List the names under which the web side is reached.",
            id="realtime.W113",
        )
    if settings.SIMPLE_JWT.get("SIGNING_KEY") == settings.SECRET_KEY:
        yield CheckWarning(
            "SECRET_KEY and JWT_SIGNING_KEY are the same",
            hint="One signs the sessions of the admin, the other signs tokens. Use two different keys.",
            id="realtime.W114",
        )
    if settings.DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
        yield Info(
            "The database is SQLite: web side and recorder must run on one machine",
            hint="Set DATABASE_URL to postgres://….",
            id="realtime.I115",
        )
