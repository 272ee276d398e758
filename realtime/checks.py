"""System checks: a wrong setting fails at start, with a hint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from realtime.catalogue import catalogue
from realtime.conf import Conf, conf

DEVELOPMENT_KEY = "development-"
"""`make run` starts every key it makes up with this."""


@register("realtime")
def check_settings(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Everything that can be said about the settings without opening a connection."""
    try:
        current = conf()
    except ImproperlyConfigured as error:
        return [Error(str(error), hint="See 'Settings' in the README.", id="realtime.E001")]
    return [*_durations(current), *_imports(current), *_keys(), *_layers()]


def _durations(current: Conf) -> Iterator[CheckMessage]:
    if not current.heartbeat_interval < current.away_after < current.presence_ttl:
        yield Error(
            "HEARTBEAT_INTERVAL < AWAY_AFTER < PRESENCE_TTL does not hold: "
            f"{current.heartbeat_interval:g}, {current.away_after:g}, {current.presence_ttl:g}",
            hint="A client must be able to send a heartbeat before it counts as away, and to be away before it "
            "counts as gone.",
            id="realtime.E002",
        )
    if not current.node_lease + current.grace_period < current.presence_ttl:
        yield Error(
            "NODE_LEASE + GRACE_PERIOD < PRESENCE_TTL does not hold: "
            f"{current.node_lease:g} + {current.grace_period:g}, {current.presence_ttl:g}",
            hint="Presence records must outlive the grace period of a process that died.",
            id="realtime.E003",
        )


def _imports(current: Conf) -> Iterator[CheckMessage]:
    try:
        catalogue()
    except ImproperlyConfigured as error:
        yield Error(
            str(error), hint="REALTIME['EVENTS'] names modules of your own events.", id="realtime.E004"
        )
    for name in ("hub_thread_policy", "portal_thread_policy"):
        path = getattr(current, name)
        try:
            import_string(path)
        except ImportError:
            yield Error(
                f"REALTIME[{name.upper()!r}]: cannot import {path!r}",
                hint="Expected the dotted path of an async function (principal, thread_id) -> bool.",
                id="realtime.E005",
            )


def _keys() -> Iterator[CheckMessage]:
    jwt: dict[str, Any] = settings.SIMPLE_JWT
    algorithm = str(jwt["ALGORITHM"])
    signing, verifying = jwt.get("SIGNING_KEY") or "", jwt.get("VERIFYING_KEY") or ""
    if algorithm.startswith("HS"):
        if not signing:
            yield Error(
                f"JWT_SIGNING_KEY is not set; {algorithm} verifies with it",
                hint="Set JWT_SIGNING_KEY to at least 32 random bytes, the same on every process.",
                id="realtime.E006",
            )
        elif len(signing) < 32:
            yield CheckWarning(
                f"JWT_SIGNING_KEY has {len(signing)} characters",
                hint="Use at least 32 random bytes (RFC 7518 §3.2).",
                id="realtime.W001",
            )
    elif not verifying and not jwt.get("JWK_URL"):
        yield Error(
            f"Neither JWT_VERIFYING_KEY nor JWT_JWK_URL is set; {algorithm} verifies with one of them",
            hint="The socket server needs the public key only.",
            id="realtime.E006",
        )
    if not settings.DEBUG and any(
        str(key).startswith(DEVELOPMENT_KEY) for key in (settings.SECRET_KEY, signing)
    ):
        yield Error(
            "DEBUG is off and a key is one that was made for development",
            hint="Set SECRET_KEY and JWT_SIGNING_KEY to secrets of your own.",
            id="realtime.E007",
        )


def _layers() -> Iterator[CheckMessage]:
    backend = settings.CHANNEL_LAYERS.get("default", {}).get("BACKEND", "")
    if backend == "channels.layers.InMemoryChannelLayer":
        yield Error(
            "The in-memory channel layer cannot connect the bridge with the socket server",
            hint="Use a channel layer on Redis.",
            id="realtime.E008",
        )
