"""The checks of every process that publishes: its settings, Redis, the namespaces and their events.

A wrong setting fails at startup, with a hint.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Info, register
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured

from realtime.checks import collisions
from realtime.conf import Conf, conf, hidden, misspelt
from realtime.protocol.catalogue import catalogue
from realtime.protocol.namespaces import namespaces
from realtime.redis import url as location


@register("realtime")
def check_settings(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find settings with which nothing can be published, without opening a connection."""
    try:
        current = conf()
    except ImproperlyConfigured as error:
        return [Error(str(error), hint="See docs/settings.md.", id="realtime.E001")]
    events = () if collisions.problems(serves=False) else _namespaces()
    return [*_redis(current), *events, *_tracing(current), *_without_effect()]


@register("realtime", deploy=True)
def check_production(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find a connection to Redis that is right for development only."""
    try:
        return [*_redis_in_production(conf().redis_url)]
    except ImproperlyConfigured:
        return []  # realtime.E001 reports it


def _redis(current: Conf) -> Iterator[CheckMessage]:
    try:
        found = location.parse(current.redis_url)
    except ValueError as error:
        # The message does not quote the address, which may hold a password.
        yield Error(
            f"REDIS_URL cannot be used: {error}",
            hint="Expected redis://host:port/0, rediss://… (TLS), unix:///path, "
            "redis+sentinel://host:port,host:port/primary/0 or redis+cluster://host:port,host:port. "
            "docs/settings.md lists the options.",
            id="realtime.E010",
        )
        return
    if found.database and current.prefix == Conf().prefix:
        yield Error(
            f"REDIS_URL names database {found.database}, and REALTIME_PREFIX is the default",
            hint="Pub/Sub crosses databases: an installation in another one with the same prefix would get this one's "
            "events and signals. Set REALTIME_PREFIX to a name that only this installation uses.",
            id="realtime.E016",
        )


def _namespaces() -> Iterator[CheckMessage]:
    try:
        namespaces()
    except ImproperlyConfigured as error:
        yield Error(
            str(error),
            hint="REALTIME['NAMESPACES'] holds dotted paths of realtime.protocol.namespaces.Namespace, for example "
            "ops.namespace.OPS. docs/settings.md lists what overrides them.",
            id="realtime.E018",
        )
        return
    try:
        catalogue()
    except ImproperlyConfigured as error:
        yield Error(
            str(error),
            hint="REALTIME['EVENTS'] and the `events` of a namespace name modules that register events.",
            id="realtime.E004",
        )


def _tracing(current: Conf) -> Iterator[CheckMessage]:
    if current.tracing and find_spec("opentelemetry") is None:
        yield Error(
            "REALTIME['TRACING'] is on, and opentelemetry-api is not installed",
            hint="pip install 'realtime-sockets[otel]'",
            id="realtime.E013",
        )


def _without_effect() -> Iterator[CheckMessage]:
    for variable in hidden(os.environ):
        yield CheckWarning(
            f"the environment has {variable}, which the settings do not read: their REALTIME lacks this entry",
            hint="Give REALTIME the entry, for example from os.environ: docs/settings.md.",
            id="realtime.W005",
        )
    for variable, near in sorted(misspelt(os.environ).items()):
        yield CheckWarning(
            f"the environment has {variable}, and no setting is called so",
            hint=f"Did you mean {near}? Limits begin with REALTIME_LIMIT_: docs/settings.md.",
            id="realtime.W004",
        )


def _redis_in_production(url: str) -> Iterator[CheckMessage]:
    try:
        found = location.parse(url)
    except ValueError:
        return  # realtime.E010 reports it
    arguments = found.sync_arguments()
    if found.sentinels:
        arguments["host"] = found.sentinels[0][0]
    if "path" in arguments or _is_loopback(arguments.get("host", "localhost")):
        return
    if not arguments.get("password"):
        yield CheckWarning(
            "REDIS_URL has no password",
            hint="Give each part a Redis user of its own (docs/security.md).",
            id="realtime.W108",
        )
    if not url.startswith("rediss"):
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
