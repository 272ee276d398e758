"""The `REALTIME` setting: every tunable of the project with its default, typed and validated."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import msgspec
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0, le=366 * 86400)]
Count = Annotated[int, Meta(ge=0)]  # 0 = off
Rate = Annotated[float, Meta(ge=0, le=1e9)]  # 0 = off; JSON has no infinity for `connection:ready`


class Limits(msgspec.Struct, frozen=True, kw_only=True, rename=str.upper, forbid_unknown_fields=True):
    """`REALTIME["LIMITS"]`, each also the environment variable `REALTIME_LIMIT_<NAME>`. 0 switches a limit off."""

    frame_bytes: Count = 64 * 1024
    """Largest client frame; beyond it the connection is closed with 1009."""
    rate: Rate = 50.0
    """Frames a second and connection; beyond it `rate_limited`, and 4429 after 10 s of it."""
    burst: Count = 100
    """Frames that may come at once."""
    invalid_frames: Count = 50
    """Invalid frames in a row after which the connection is closed with 4400."""
    rooms: Count = 200
    """Rooms a connection may be in; beyond it `limit_exceeded`."""
    user_connections: Count = 20
    """Connections of a user in a namespace, over all instances; beyond it the oldest is closed with 4409."""
    connections: Count = 0
    """Connections of an instance; beyond it handshakes get 503 `at_capacity`."""
    handshakes: Rate = 5000.0
    """Handshakes a second and instance, verdicts on them included; beyond it they get 503 `at_capacity`."""
    address_handshakes: Rate = 50.0
    """Requests a second and address, plain or for a WebSocket, four times as many at once; beyond it they get 503.

    Only with `TRUSTED_PROXIES`: without it, all clients behind a proxy have the proxy's address."""
    address_logins: Count = 60
    """Logins a minute and address (`/token/` and the admin); beyond it 429."""
    name_logins: Count = 10
    """Logins a minute and user name, from all addresses together; beyond it 429."""
    unsent_bytes: Count = 1024 * 1024
    """Bytes that may wait for a client that reads too slowly; beyond it the connection is closed with 4413."""
    handshake_seconds: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    """A handshake that takes longer than this is cut."""
    bus_bytes: Count = 256 * 1024
    """Largest message on the bus; a larger one becomes a dead letter."""


class Conf(msgspec.Struct, frozen=True, kw_only=True, rename=str.upper, forbid_unknown_fields=True):
    """`REALTIME`. Names in capitals there; durations in seconds, decimals allowed."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = "realtime"
    """First part of every Redis key and channel."""

    publish_timeout: Seconds = 5.0
    """The longest that a backbone's call waits for Redis, in all: connecting and a second attempt included."""
    publish_directly: bool = False
    """Let a backbone append its messages to their rooms itself, as long as nothing waits in the stream before them.

    It saves the bridge's part of the way. The backbone's Redis user needs more rights: docs/security.md."""
    outbox_wait: Seconds = 0.5
    """The longest that a request waits for Redis to take the messages of a transaction from the outbox."""

    heartbeat_interval: Seconds = 30.0
    """How often clients send a heartbeat; `connection:ready` names it."""
    away_after: Seconds = 75.0
    """A user without a heartbeat for this time is away.

    It is above 60 s because browsers slow the timers of hidden tabs to one a minute."""
    grace_period: Seconds = 60.0
    """How long a user may be without a connection before they are announced offline."""
    presence_ttl: Seconds = 300.0
    """A connection without any frame for this time is closed with 4408; also the expiry of presence records."""
    node_lease: Seconds = 10.0
    """An instance that does not renew its lease for this time is dead."""
    drain_seconds: Annotated[float, Meta(ge=0, le=3600)] = 20.0
    """After SIGTERM the connections are closed over this time, not all at once."""
    grant_ttl: Seconds = 86400.0
    """How long a grant or a revocation of a thread is remembered."""

    presence_retention: Annotated[float, Meta(ge=0, le=100 * 366 * 86400)] = 366 * 86400.0
    """How long the recorder keeps the history of presence in the database; 0: without end."""

    history_size: Annotated[int, Meta(ge=0)] = 1000
    """Publications kept per room."""
    history_ttl: Seconds = 600.0
    """How long a room's history is kept after its last publication."""
    history_bytes: Annotated[int, Meta(ge=0)] = 1024 * 1024
    """Bytes of publications kept per room."""

    allowed_origins: tuple[str, ...] = ()
    """Exact `scheme://host[:port]` of the pages that may connect; `null` must be listed to be allowed."""
    require_origin: bool = False
    """Refuse a handshake without Origin. Native clients send none, browsers always do."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For is believed."""
    query_token: bool = False
    """Accept `?token=` as a credential (for tools only: a URL ends up in the logs of proxies)."""
    jwks_timeout: Seconds = 3.0
    """Longest wait for the JWKS endpoint."""
    claims: str = ""
    """Dotted path of `(claims) -> claims`: maps the claims of another issuer's tokens to those of this server."""
    jwks_outage: Annotated[float, Meta(ge=0, le=366 * 86400)] = 3600.0
    """How long known keys stay valid while the JWKS endpoint does not answer."""

    namespaces: tuple[str, ...] = ("realtime.namespaces.hub.HUB", "realtime.namespaces.portal.PORTAL")
    """Dotted paths of the namespaces (`realtime.protocol.namespaces`) that are served; by default the two shipped ones.

    `<NAMESPACE>_ROLES` and `<NAMESPACE>_<KIND>_POLICY` replace what one of them declares: see `overrides`."""
    presence_roles: tuple[str, ...] = ()
    """Roles that are listed in presence; users with another role watch without being listed.

    Empty: as the namespaces declare."""
    customer_presence: bool = False
    """Announce to the team in a thread whether its customers are online (`customer:online`, `customer:offline`)."""
    events: tuple[str, ...] = ()
    """Dotted paths of modules that register a product's own events."""

    inline: bool = False
    """Run the bridge inside the process of an application made by `with_sockets`, for development."""
    embedded_bridge: bool = False
    """Run a bridge inside the socket server."""
    metrics_token: str = ""
    """If set, `/metrics` answers only a request with this bearer token."""
    tracing: bool = False
    """Make OpenTelemetry spans; needs the extra `otel`."""
    limits: Limits = Limits()

    @property
    def batch_interval(self) -> float:
        """Seconds between internal batches: a quarter of the shortest duration they serve, at most one second."""
        return min(self.node_lease, self.away_after, self.grace_period, self.presence_ttl, 4.0) / 4


_LISTS = frozenset({"ALLOWED_ORIGINS", "TRUSTED_PROXIES", "NAMESPACES", "PRESENCE_ROLES", "EVENTS"})
_OVERRIDE = re.compile(r"[A-Z][A-Z0-9_]*_(ROLES|POLICY)", re.ASCII)
OWN_VARIABLES = {name: name for name in ("REDIS_URL", "ALLOWED_ORIGINS", "TRUSTED_PROXIES")}
"""Settings whose environment variable does not start with `REALTIME_`."""
_READ_ALWAYS = frozenset({"INLINE", "EMBEDDED_BRIDGE"})
"""Settings whose variable is read whatever settings a project has."""
_SECRETS = frozenset({"REDIS_URL", "METRICS_TOKEN"})
"""Settings whose value no message shows."""


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The part of `REALTIME` that the environment sets, as text; `parse` converts and checks it.

    Each setting is the variable `REALTIME_<NAME>` (lists comma-separated), each limit `REALTIME_LIMIT_<NAME>`.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Conf):
        name = field.encode_name
        text = environ.get(
            OWN_VARIABLES.get(name, f"REALTIME_{name}"), ""
        )  # an empty variable counts as not set
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

    Raises `ImproperlyConfigured` with the entry, what was expected and what was given.
    """
    try:
        own = {name: value for name, value in values.items() if not _is_override(name)}
        return msgspec.convert(own, Conf, strict=False)
    except msgspec.ValidationError as error:
        raise ImproperlyConfigured(_description(str(error), values)) from error


def _description(error: str, values: Mapping[str, Any]) -> str:
    """A validation error with the entry that it is about, and the value unless that may be a secret."""
    message, _, path = error.replace("`array`", "a list").partition(" - at `$.")
    path = path.rstrip("`")
    if unknown := _UNKNOWN.fullmatch(message):
        return _unknown(unknown[1], path)
    if not path:
        return f"REALTIME: {message}"
    given: Any = values
    for name in path.split("."):
        given = given.get(name) if isinstance(given, Mapping) else None
    if given is not None and not isinstance(given, Mapping) and path not in _SECRETS:
        message = f"{message.partition(', got')[0]}, got {given!r}"
    return f"REALTIME[{path!r}]: {message}"


def _unknown(name: str, path: str) -> str:
    """That there is no such entry, and which one it may stand for."""
    known = _LIMITS if path == "LIMITS" else _FIELDS
    if limit := _nearest(name.upper().removeprefix("LIMIT_"), _LIMITS if "LIMIT_" in name.upper() else ()):
        hint = f"; did you mean REALTIME['LIMITS'][{limit!r}]?"
    else:
        hint = f"; did you mean {near!r}?" if (near := _nearest(name.upper(), known)) else ""
    return f"REALTIME{f'[{path!r}]' if path else ''}[{name!r}]: there is no such setting{hint}"


def _nearest(name: str, known: Collection[str]) -> str:
    return next(iter(get_close_matches(name, known, 1, 0.8)), "")


def misspelt(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that set nothing, each with the one that it may stand for.

    Others may begin with `REALTIME_`, too: Kubernetes makes some for a service called realtime-sockets.
    """
    names = {name: OWN_VARIABLES.get(name, f"REALTIME_{name}") for name in _FIELDS - {"LIMITS"}}
    names |= {f"LIMIT_{name}": f"REALTIME_LIMIT_{name}" for name in _LIMITS}
    found = {}
    for variable in environ.keys() - {*names.values()}:
        name = variable.removeprefix("REALTIME_")
        if name != variable and not _is_override(name) and (near := _nearest(name, names)):
            found[variable] = names[near]
    return found


def hidden(environ: Mapping[str, str]) -> list[str]:
    """Variables that set nothing because the project has a `REALTIME` of its own, which lacks their entries.

    Without the prefix a variable may be the project's own (`REDIS_URL` of its cache).
    """
    given = getattr(settings, "REALTIME", None)
    if given is None:
        return []
    values = from_environment(environ)
    limits = values.pop("LIMITS", {}).keys() - given.get("LIMITS", {}).keys()
    names = values.keys() - given.keys() - OWN_VARIABLES.keys() - _READ_ALWAYS
    return sorted([*(f"REALTIME_{name}" for name in names), *(f"REALTIME_LIMIT_{name}" for name in limits)])


def overrides() -> dict[str, Any]:
    """The entries of `REALTIME` that replace what a namespace declares: `HUB_ROLES`, `HUB_THREAD_POLICY`."""
    return {name: value for name, value in _given().items() if _is_override(name)}


def _is_override(name: str) -> bool:
    return _OVERRIDE.fullmatch(name) is not None and name not in _FIELDS


_FIELDS = frozenset(field.encode_name for field in msgspec.structs.fields(Conf))
_LIMITS = frozenset(field.encode_name for field in msgspec.structs.fields(Limits))
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)

F = TypeVar("F", bound=Callable[..., Any])


def cached(
    size: int = 1, *, of: Collection[str] = ("REALTIME",), drop: Callable[[Any], object] | None = None
) -> Callable[[F], F]:
    """Decorate a function of the settings `of`: it keeps its last `size` results until one changes (in tests).

    `drop` ends what is kept then, if the function has no arguments.
    """

    def decorate(function: F) -> F:
        keeping = lru_cache(maxsize=size)(function)

        def forget(*, setting: str, **_: object) -> None:
            if setting in of:
                if drop is not None and keeping.cache_info().currsize:
                    drop(keeping())
                keeping.cache_clear()

        setting_changed.connect(forget, weak=False)
        return keeping  # type: ignore[return-value]

    return decorate


def load(importer: Callable[[str], Any], path: str) -> Any:
    """What `importer` (`import_string` or `import_module`) finds at a dotted path of the product.

    Raises `ImportError` for anything that goes wrong in the module, or the `ImproperlyConfigured` that it raised.
    """
    try:
        return importer(path)
    except (ImportError, ImproperlyConfigured):
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if isinstance(error, SyntaxError) else f" ({where.filename}, line {where.lineno})"
        raise ImportError(f"{type(error).__name__}: {error}{place}") from error


@cached()
def conf() -> Conf:
    """The settings of this process. Raises `ImproperlyConfigured` when one of them is wrong."""
    return parse(_given())


def _given() -> Mapping[str, Any]:
    """The setting `REALTIME`, or what the environment sets where a project leaves it out.

    Raises `ImproperlyConfigured` if it is no mapping.
    """
    given = getattr(settings, "REALTIME", None)
    if given is None:
        return from_environment(os.environ)
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"REALTIME: expected a dict, got {type(given).__name__}")
    _check_text(given)
    return given


def _check_text(given: Mapping[Any, Any], path: str = "") -> None:
    """Refuse what is no text, without its value: Python reads bytes of the environment that are not UTF-8 as halves of
    surrogate pairs.
    """
    for name, value in given.items():
        entry = f"{path}{name}"
        if not isinstance(name, str):
            raise ImproperlyConfigured(f"REALTIME: expected names of settings, got {name!r}")
        if any(not _is_text(each) for each in (name, *_texts(value))):
            raise ImproperlyConfigured(f"REALTIME[{entry!r}]: expected text in UTF-8")
        if isinstance(value, Mapping):
            _check_text(value, f"{entry}.")


def _texts(value: object) -> Iterable[str]:
    items = value if isinstance(value, list | tuple) else [value]
    return (each for each in items if isinstance(each, str))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
