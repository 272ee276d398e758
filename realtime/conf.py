"""The `REALTIME` setting: every tunable of the project with its default, typed and validated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import msgspec
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0, le=366 * 86400)]
Count = Annotated[int, Meta(ge=0)]  # 0 = off


class Limits(msgspec.Struct, frozen=True, kw_only=True, rename=str.upper, forbid_unknown_fields=True):
    """`REALTIME["LIMITS"]`, each also the environment variable `REALTIME_LIMIT_<NAME>`. 0 switches a limit off."""

    frame_bytes: Count = 64 * 1024
    """Largest client frame; beyond it the connection is closed with 1009."""
    rate: Annotated[float, Meta(ge=0)] = 50.0
    """Frames a second and connection; beyond it `rate_limited`, and 4429 after 10 s of it."""
    burst: Count = 100
    """So many frames may come at once."""
    invalid_frames: Count = 50
    """So many invalid frames in a row close the connection with 4400."""
    rooms: Count = 200
    """Rooms a connection may be in; beyond it `limit_exceeded`."""
    user_connections: Count = 20
    """Connections of a user in a namespace, over all processes; beyond it the oldest is closed with 4409."""
    connections: Count = 0
    """Connections of a process; beyond it handshakes get 503 `at_capacity`."""
    handshakes: Annotated[float, Meta(ge=0)] = 5000.0
    """Handshakes a second and process, verdicts on them included; beyond it they get 503 `at_capacity`."""
    address_handshakes: Annotated[float, Meta(ge=0)] = 50.0
    """Requests a second and address, plain or for a WebSocket, four times as many at once; beyond it they get 503.

    Only with `TRUSTED_PROXIES`: without, all clients behind a proxy have its address."""
    address_logins: Count = 60
    """Logins a minute and address (`/token/` and the admin); beyond it 429."""
    name_logins: Count = 10
    """Logins a minute and user name, from all addresses together; beyond it 429."""
    unsent_bytes: Count = 1024 * 1024
    """What may wait for a client that does not read; beyond it the connection is closed with 4413."""
    handshake_seconds: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    """A handshake that takes longer than this is cut."""
    bus_bytes: Count = 256 * 1024
    """Largest message on the bus; a larger one becomes a dead letter."""


class Conf(msgspec.Struct, frozen=True, kw_only=True, rename=str.upper, forbid_unknown_fields=True):
    """`REALTIME`. Names in capitals there; durations in seconds, decimals allowed."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = "realtime"
    """First part of every Redis key and channel."""

    heartbeat_interval: Seconds = 30.0
    """What a client is told to keep."""
    away_after: Seconds = 75.0
    """No heartbeat for so long: away. Above 60 s because browsers slow the timers of hidden tabs to one a minute."""
    grace_period: Seconds = 60.0
    """How long after the last connection is lost nobody is told."""
    presence_ttl: Seconds = 300.0
    """A connection without any frame for so long is closed with 4408; also the expiry of presence records."""
    node_lease: Seconds = 10.0
    """A socket process that stops renewing for so long is dead."""
    drain_seconds: Annotated[float, Meta(ge=0, le=3600)] = 20.0
    """On SIGTERM everybody is closed within so long, not all at once."""
    grant_ttl: Seconds = 86400.0
    """How long a grant or revoke of a thread is remembered."""

    presence_retention: Annotated[float, Meta(ge=0, le=100 * 366 * 86400)] = 366 * 86400.0
    """How long the recorder keeps the history of presence in the database; 0: for ever."""

    history_size: Annotated[int, Meta(ge=0)] = 1000
    """Publications kept per room."""
    history_ttl: Seconds = 600.0
    """How long after the last publication a room's log is kept."""
    history_bytes: Annotated[int, Meta(ge=0)] = 1024 * 1024
    """Bytes of publications kept per room."""

    allowed_origins: tuple[str, ...] = ()
    """Exact `scheme://host[:port]` of the pages that may connect; `null` must be listed to be allowed."""
    require_origin: bool = False
    """Refuse a handshake without Origin. Native clients send none, browsers always do."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For is believed."""
    query_token: bool = False
    """Accept `?token=` as a credential (tools only: an URL ends up in the logs of proxies)."""
    jwks_timeout: Seconds = 3.0
    """Longest wait for the JWKS endpoint."""
    claims: str = ""
    """Dotted path of `(claims) -> claims`: maps the claims of another issuer's tokens to those of this server."""
    jwks_outage: Annotated[float, Meta(ge=0, le=366 * 86400)] = 3600.0
    """While the JWKS endpoint cannot be asked, keys that are known stay good for so long."""

    namespaces: tuple[str, ...] = ()
    """Dotted paths of the namespaces (`realtime.protocol.namespaces`) that are served.

    `<NAMESPACE>_ROLES` and `<NAMESPACE>_<KIND>_POLICY` replace what one of them declares: see `overrides`."""
    presence_roles: tuple[str, ...] = ()
    """Roles that are listed in presence; the other users watch without being seen. Empty: as the namespaces declare."""
    customer_presence: bool = False
    """Tell the team in a thread whether its customers are there (`customer:online`, `customer:offline`)."""
    events: tuple[str, ...] = ()
    """Dotted paths of modules that register a product's own events."""

    metrics_token: str = ""
    """When set, `/metrics` wants it as bearer."""
    tracing: bool = False
    """Make OpenTelemetry spans; needs the extra `otel`."""
    limits: Limits = Limits()

    @property
    def batch_interval(self) -> float:
        """Seconds between internal batches: a quarter of the shortest duration they serve, at most one second."""
        return min(self.node_lease, self.away_after, self.grace_period, self.presence_ttl, 4.0) / 4


_LISTS = frozenset({"ALLOWED_ORIGINS", "TRUSTED_PROXIES", "NAMESPACES", "PRESENCE_ROLES", "EVENTS"})
_OVERRIDE = re.compile(r"[A-Z][A-Z0-9_]*_(ROLES|POLICY)", re.ASCII)
_OWN_NAMES = {name: name for name in ("REDIS_URL", "ALLOWED_ORIGINS", "TRUSTED_PROXIES")}
"""Settings whose environment variable does not start with `REALTIME_`."""


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The part of `REALTIME` that the environment sets, as text: it is converted and checked by `parse`.

    Each setting is the variable `REALTIME_<NAME>` (lists comma-separated), each limit `REALTIME_LIMIT_<NAME>`.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Conf):
        name = field.encode_name
        text = environ.get(_OWN_NAMES.get(name, f"REALTIME_{name}"), "")  # empty is as good as not set
        if text and name in _LISTS:
            values[name] = _list(text)
        elif text and name != "LIMITS":
            values[name] = text
    for variable, text in environ.items():
        name = variable.removeprefix("REALTIME_")
        if text and name != variable and _is_override(name):
            values[name] = _list(text) if name.endswith("_ROLES") else text
    limits = {
        field.encode_name: text
        for field in msgspec.structs.fields(Limits)
        if (text := environ.get(f"REALTIME_LIMIT_{field.encode_name}", ""))
    }
    return {**values, "LIMITS": limits} if limits else values


def _list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def parse(values: Mapping[str, Any]) -> Conf:
    """Validate a `REALTIME` mapping, except for what `overrides` returns.

    Raises `ImproperlyConfigured` naming the entry, what was expected and what it got.
    """
    try:
        own = {name: value for name, value in values.items() if not _is_override(name)}
        return msgspec.convert(own, Conf, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        where = f"REALTIME[{path.rstrip('`')!r}]" if path else "REALTIME"
        raise ImproperlyConfigured(f"{where}: {message}") from error


def overrides() -> dict[str, Any]:
    """The entries of `REALTIME` that replace what a namespace declares: `HUB_ROLES`, `HUB_THREAD_POLICY`."""
    return {name: value for name, value in settings.REALTIME.items() if _is_override(name)}


def _is_override(name: str) -> bool:
    return _OVERRIDE.fullmatch(name) is not None and name not in _FIELDS


_FIELDS = frozenset(field.encode_name for field in msgspec.structs.fields(Conf))

F = TypeVar("F", bound=Callable[..., Any])


def cached(size: int = 1) -> Callable[[F], F]:
    """Decorate a function of the settings: it keeps its last `size` results until `REALTIME` changes (in tests)."""

    def decorate(function: F) -> F:
        keeping = lru_cache(maxsize=size)(function)

        def forget(*, setting: str, **_: object) -> None:
            if setting == "REALTIME":
                keeping.cache_clear()

        setting_changed.connect(forget, weak=False)
        return keeping  # type: ignore[return-value]

    return decorate


@cached()
def conf() -> Conf:
    """The settings of this process. Raises `ImproperlyConfigured` when one of them is wrong."""
    return parse(settings.REALTIME)
