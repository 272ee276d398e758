"""System checks: a wrong setting fails at startup, with a hint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from importlib.util import find_spec
from inspect import iscoroutinefunction, isfunction, unwrap
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from jwt.algorithms import get_default_algorithms
from jwt.exceptions import PyJWTError

from realtime.auth.claims import mapping
from realtime.auth.revocation import MARK_SECONDS
from realtime.conf import Conf, conf, load
from realtime.connections.addresses import networks
from realtime.connections.consumer import NamespaceConsumer
from realtime.protocol.catalogue import catalogue
from realtime.protocol.namespaces import Namespace, Presence, namespaces
from realtime.redis import url

OWN_LAYER = "realtime.layers.RoomChannelLayer"
DEVELOPMENT_KEY = "development-"
"""Every key that `make run` generates starts with this."""
EXAMPLE_KEY = "change-me"
"""Every key in `deploy/realtime.env.example` and `deploy/kubernetes/` starts with this."""
SECRET_BYTES = 32
"""The shortest secret for HS256 (RFC 7518 §3.2)."""
_REPETITION = re.compile(r"(.+?)\1+", re.DOTALL)
_CLAIMS = {"JTI_CLAIM": "jti", "TOKEN_TYPE_CLAIM": "token_type", "USER_ID_CLAIM": "user_id"}
"""simplejwt's settings for the names of the claims that every token needs, with their defaults."""


@register("realtime")
def check_settings(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find settings that cannot work, without opening a connection."""
    try:
        current = conf()
    except ImproperlyConfigured as error:
        return [Error(str(error), hint="See docs/settings.md.", id="realtime.E001")]
    return [
        *_durations(current),
        *_redis(current),
        *_proxies(current),
        *_namespaces(),
        *_mapping(),
        *_tracing(current),
        *_keys(),
        *_claims(),
        *_layers(),
    ]


def _durations(current: Conf) -> Iterator[CheckMessage]:
    if not current.heartbeat_interval < current.away_after < current.presence_ttl:
        yield Error(
            "expected HEARTBEAT_INTERVAL < AWAY_AFTER < PRESENCE_TTL, got "
            f"{current.heartbeat_interval:g}, {current.away_after:g}, {current.presence_ttl:g}",
            hint="A client must be able to send a heartbeat before it counts as away, and to be away before it "
            "counts as gone.",
            id="realtime.E002",
        )
    if not current.node_lease + current.grace_period < current.presence_ttl:
        yield Error(
            "expected NODE_LEASE + GRACE_PERIOD < PRESENCE_TTL, got "
            f"{current.node_lease:g} + {current.grace_period:g}, {current.presence_ttl:g}",
            hint="Presence records must outlive the grace period of an instance that died.",
            id="realtime.E003",
        )


def _namespaces() -> Iterator[CheckMessage]:
    try:
        registered = namespaces()
    except ImproperlyConfigured as error:
        yield Error(
            str(error),
            hint="REALTIME['NAMESPACES'] holds dotted paths of realtime.protocol.namespaces.Namespace, for example "
            "ops.namespace.OPS. docs/settings.md lists what overrides them.",
            id="realtime.E018",
        )
        return
    for namespace in registered.values():
        yield from _policies(namespace)
        if problem := _unusable(namespace.consumer) or _no_consumer(namespace):
            yield Error(
                f"The consumer of the namespace {namespace.name!r}: {problem}",
                hint="Expected realtime.connections.consumer.NamespaceConsumer, or a class derived from it.",
                id="realtime.E019",
            )
    yield from _listed_roles(registered.values())
    try:
        catalogue()
    except ImproperlyConfigured as error:
        yield Error(
            str(error),
            hint="REALTIME['EVENTS'] and the `events` of a namespace name modules that register events.",
            id="realtime.E004",
        )


def _policies(namespace: Namespace) -> Iterator[CheckMessage]:
    for kind, policy in namespace.policies.items():
        if problem := _unusable(policy) or _not_async(policy):
            yield Error(
                f"REALTIME['{namespace.name.upper()}_{kind.upper()}_POLICY']: {problem}",
                hint="Expected the dotted path of an async function (principal, id) -> bool.",
                id="realtime.E005",
            )


def _no_consumer(namespace: Namespace) -> str:
    found = namespace.consumer_class
    is_one = isinstance(found, type) and issubclass(found, NamespaceConsumer)
    return "" if is_one else f"expected a NamespaceConsumer, got {found!r}"


def _listed_roles(registered: Iterable[Namespace]) -> Iterator[CheckMessage]:
    seen = {role for each in registered if each.presence is not Presence.NONE for role in each.roles}
    if unknown := sorted({*conf().presence_roles} - seen):
        yield Error(
            f"REALTIME['PRESENCE_ROLES']: no namespace with presence has the role {unknown[0]!r}",
            hint=f"Its roles are {', '.join(sorted(seen))}.",
            id="realtime.E020",
        )


def _unusable(path: object) -> str:
    """Why a dotted path or a callable can't be used; empty: it can."""
    try:
        found = load(import_string, path) if isinstance(path, str) else path
    except ImportError as error:
        return f"cannot import {path!r}: {error}"
    return "" if callable(found) else f"expected something to call, got {type(found).__name__}"


def _not_async(policy: object) -> str:
    found = import_string(policy) if isinstance(policy, str) else policy
    is_plain = isfunction(found) and not iscoroutinefunction(unwrap(found))
    return f"expected an async function, got {found!r}" if is_plain else ""


def _mapping() -> Iterator[CheckMessage]:
    try:
        found = mapping()
    except ImportError as error:
        problem = f"cannot import it: {error}"
    else:
        if callable(found) and not iscoroutinefunction(found):
            return
        problem = f"expected a function that is not async, got {found!r}"
    yield Error(
        f"REALTIME['CLAIMS']: {problem}",
        hint="Expected the dotted path of a function (claims) -> claims: docs/identity-providers.md.",
        id="realtime.E017",
    )


def _tracing(current: Conf) -> Iterator[CheckMessage]:
    if current.tracing and find_spec("opentelemetry") is None:
        yield Error(
            "REALTIME['TRACING'] is on, and opentelemetry-api is not installed",
            hint="pip install 'realtime-sockets[otel]'",
            id="realtime.E013",
        )


def _keys() -> Iterator[CheckMessage]:
    jwt: dict[str, Any] = settings.SIMPLE_JWT
    algorithm, signing = str(jwt["ALGORITHM"]), str(jwt.get("SIGNING_KEY") or "")
    symmetric = algorithm.startswith("HS")
    verifying = signing if symmetric else str(jwt.get("VERIFYING_KEY") or "")
    if algorithm == "none" or algorithm not in get_default_algorithms():
        yield Error(
            f"expected a known JWT_ALGORITHM, got {algorithm!r}",
            hint="Use for example HS256, RS256, ES256 or EdDSA.",
            id="realtime.E009",
        )
    elif verifying:
        yield from _usable(algorithm, verifying, "JWT_SIGNING_KEY" if symmetric else "JWT_VERIFYING_KEY")
    elif symmetric:
        yield Error(
            f"JWT_SIGNING_KEY is not set; {algorithm} verifies with it",
            hint="Set JWT_SIGNING_KEY to at least 32 random bytes, the same on every process. In development, DEBUG=1 "
            "takes the keys of `make run`.",
            id="realtime.E006",
        )
    elif not jwt.get("JWK_URL"):
        yield Error(
            f"Neither JWT_VERIFYING_KEY nor JWT_JWK_URL is set; {algorithm} verifies with one of them",
            hint="The socket server needs the public key only.",
            id="realtime.E006",
        )
    lifetime = jwt.get("REFRESH_TOKEN_LIFETIME")
    if isinstance(lifetime, timedelta) and lifetime.total_seconds() > MARK_SECONDS:
        yield CheckWarning(
            f"SIMPLE_JWT['REFRESH_TOKEN_LIFETIME'] is {lifetime}; "
            f"revocations are remembered for {MARK_SECONDS // 3600} hours",
            hint="A refresh token that lives longer may outlive the record of the user:disconnect that ended it.",
            id="realtime.W003",
        )
    if symmetric and signing and (weakness := _weakness(signing)):
        yield Error(
            f"JWT_SIGNING_KEY {weakness}",
            hint="Tokens can be forged by guessing the key. Use at least 32 random bytes (RFC 7518 §3.2), for example "
            "from `openssl rand -base64 48`.",
            id="realtime.E015",
        )
    if not settings.DEBUG and any(
        str(key).startswith((DEVELOPMENT_KEY, EXAMPLE_KEY)) for key in (settings.SECRET_KEY, signing)
    ):
        yield Error(
            "DEBUG is off, and SECRET_KEY or JWT_SIGNING_KEY is a development key or the key of an example",
            hint="Set SECRET_KEY and JWT_SIGNING_KEY to secrets of your own.",
            id="realtime.E007",
        )


def _weakness(secret: str) -> str:
    """Why a secret is easy to guess, without anything of the secret itself; empty if no reason is found."""
    size = len(secret.encode(errors="replace"))
    if size < SECRET_BYTES:
        return f"has {size} bytes, at least {SECRET_BYTES} are needed"
    beginning = secret[:512]
    if 2 * len(_REPETITION.sub(r"\1", beginning)) < len(beginning):
        return "is a repeated pattern"
    return ""


def _claims() -> Iterator[CheckMessage]:
    names = {name: settings.SIMPLE_JWT.get(name, default) for name, default in _CLAIMS.items()}
    are_names = all(isinstance(name, str) and name for name in names.values())
    if not are_names or len({*names.values()}) < len(names):
        given = ", ".join(f"{setting}={name!r}" for setting, name in names.items())
        yield Error(
            f"expected different claim names in SIMPLE_JWT, got {given}",
            hint="Every token needs an id, a type and a user: give each of these claims a name of its own.",
            id="realtime.E014",
        )


def _usable(algorithm: str, key: str, name: str) -> Iterator[CheckMessage]:
    try:
        get_default_algorithms()[algorithm].prepare_key(key)
    except (ValueError, TypeError, PyJWTError):
        # The library's message may quote the key.
        yield Error(
            f"{name} is not a key for {algorithm}",
            hint="Expected PEM (line breaks may be written as \\n), or for HS* a plain secret.",
            id="realtime.E009",
        )


def _redis(current: Conf) -> Iterator[CheckMessage]:
    try:
        found = url.parse(current.redis_url)
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
    if found.nodes and settings.CHANNEL_LAYERS.get("default", {}).get("BACKEND") != OWN_LAYER:
        yield Error(
            "REDIS_URL names a Cluster, and the channel layer is another one",
            hint=f"With a Cluster the channel layer must be {OWN_LAYER}.",
            id="realtime.E012",
        )
    if found.database and current.prefix == Conf().prefix:
        yield Error(
            f"REDIS_URL names database {found.database}, and REALTIME_PREFIX is the default",
            hint="Pub/Sub crosses databases: an installation in another one with the same prefix would get this one's "
            "events and signals. Set REALTIME_PREFIX to a name that only this installation uses.",
            id="realtime.E016",
        )


def _proxies(current: Conf) -> Iterator[CheckMessage]:
    try:
        networks(current.trusted_proxies)
    except ValueError as error:
        yield Error(
            f"TRUSTED_PROXIES: {error}",
            hint="Expected addresses or networks, for example 10.0.0.0/8,127.0.0.1.",
            id="realtime.E011",
        )


def _layers() -> Iterator[CheckMessage]:
    backend = settings.CHANNEL_LAYERS.get("default", {}).get("BACKEND", "")
    if backend == "channels.layers.InMemoryChannelLayer":
        yield Error(
            "The in-memory channel layer cannot connect the bridge with the socket server",
            hint="Use a channel layer on Redis.",
            id="realtime.E008",
        )
    elif backend != OWN_LAYER:
        yield CheckWarning(
            f"With the channel layer {backend!r} messages are delivered at most once, and nothing is recovered",
            hint=f"{OWN_LAYER} delivers every message once and in order, and reports a loss.",
            id="realtime.W002",
        )
