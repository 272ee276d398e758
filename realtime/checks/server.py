"""The checks of the socket server and the bridge: durations, proxies, origins, policies, consumers, layers, limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from inspect import iscoroutinefunction
from ipaddress import IPv6Address
from typing import Any

import msgspec
from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Info, register
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from realtime.auth.claims import mapping
from realtime.checks import collisions
from realtime.conf import Conf, Limits, conf, load
from realtime.connections.addresses import networks
from realtime.connections.consumer import NamespaceConsumer
from realtime.layers.configured import OWN_LAYER, backend, channel_layer
from realtime.protocol.declarations import is_async, spelled
from realtime.protocol.namespaces import Namespace, Presence, namespaces
from realtime.redis import url


@register("realtime")
def check_server(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find settings with which no connection can be served, without opening one."""
    try:
        current = conf()
    except ImproperlyConfigured:
        return []
    return [
        *_durations(current),
        *_proxies(current),
        *_origins(current),
        *(() if collisions.problems(serves=True) else _served()),
        *_mapping(),
        *_layers(current),
    ]


@register("realtime", deploy=True)
def check_server_in_production(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find settings that are right for development and wrong in production, or worth a thought there."""
    try:
        current = conf()
    except ImproperlyConfigured:
        return []
    return [*_handshake(current), *_operation(current), *_limits(current.limits)]


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


def _served() -> Iterator[CheckMessage]:
    try:
        registered = namespaces()
    except ImproperlyConfigured:
        return
    for namespace in registered.values():
        yield from _policies(namespace)
        if problem := _unusable(namespace.consumer) or _no_consumer(namespace):
            yield Error(
                f"The consumer of the namespace {namespace.name!r}: {problem}",
                hint="Expected realtime.connections.consumer.NamespaceConsumer, or a class derived from it.",
                id="realtime.E019",
            )
        else:
            yield from _without_presence(namespace)
    yield from _listed_roles(registered.values())


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


def _without_presence(namespace: Namespace) -> Iterator[CheckMessage]:
    consumer = namespace.consumer_class
    if namespace.presence not in {Presence.NONE, consumer.keeps_presence}:
        yield Error(
            f"The consumer of the namespace {namespace.name!r}, {consumer.__name__}, keeps no presence",
            hint="Expected presence.connection.TeamPresence or CustomerPresence, as the namespace declares, or a class "
            "derived from it.",
            id="realtime.E021",
        )


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
    return "" if is_async(found) else f"expected an async function, got {spelled(found)}"


def _mapping() -> Iterator[CheckMessage]:
    try:
        found = mapping()
    except ImportError as error:
        problem = f"cannot import it: {error}"
    except ImproperlyConfigured:
        return  # realtime.E009 reports it
    else:
        if callable(found) and not iscoroutinefunction(found):
            return
        problem = f"expected a function that is not async, got {found!r}"
    yield Error(
        f"REALTIME['CLAIMS']: {problem}",
        hint="Expected the dotted path of a function (claims) -> claims: docs/identity-providers.md.",
        id="realtime.E017",
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


LARGEST_PORT = 65_535
_ORIGIN = re.compile(
    r"null|file://|(?!wss?:)[a-z][a-z0-9+.-]*://(\[(?P<ipv6>[0-9a-f:.]+)\]|[a-z0-9_.-]+)(:(?P<port>[1-9][0-9]{0,4}))?",
    re.ASCII | re.IGNORECASE,
)


def _origins(current: Conf) -> Iterator[CheckMessage]:
    if wrong := [origin for origin in current.allowed_origins if not _may_match(origin)]:
        yield Error(
            f"ALLOWED_ORIGINS: no page has the origin {', '.join(map(repr, wrong))}",
            hint="Expected the scheme, host and port of a page as a browser sends them, without path or final slash: "
            "for example https://support.example.com or http://localhost:3000. There are no wildcards; list each.",
            id="realtime.E022",
        )


def _may_match(origin: str) -> bool:
    if (found := _ORIGIN.fullmatch(origin)) is None or int(found["port"] or 0) > LARGEST_PORT:
        return False
    return not found["ipv6"] or _is_as_browsers_write_it(found["ipv6"])


def _is_as_browsers_write_it(ipv6: str) -> bool:
    try:
        address = IPv6Address(ipv6)
    except ValueError:
        return False
    # Python 3.13 writes the IPv4 address in some with dots, and browsers never do.
    return "." not in ipv6 and (address.ipv4_mapped is not None or str(address) == ipv6.lower())


def _layers(current: Conf) -> Iterator[CheckMessage]:
    try:
        backend()
        channel_layer()  # which opens no connection
    except Exception as error:
        # Nothing in the setting is checked by Channels, and its options are those of any class.
        yield Error(
            f"The channel layer cannot be made: {type(error).__name__}: {error}",
            hint='Expected CHANNEL_LAYERS = {"default": {"BACKEND": "dotted.path", "CONFIG": {…}}}, or none at all.',
            id="realtime.E008",
        )
        return
    if backend() == "channels.layers.InMemoryChannelLayer":
        yield Error(
            "The in-memory channel layer cannot connect the bridge with the socket server",
            hint="Use a channel layer on Redis.",
            id="realtime.E008",
        )
    elif backend() != OWN_LAYER:
        yield CheckWarning(
            f"With the channel layer {backend()!r} messages are delivered at most once, and nothing is recovered",
            hint=f"{OWN_LAYER} delivers every message once and in order, and reports a loss.",
            id="realtime.W002",
        )
    if backend() != OWN_LAYER and _is_cluster(current.redis_url):
        yield Error(
            "REDIS_URL names a Cluster, and the channel layer is another one",
            hint=f"With a Cluster the channel layer must be {OWN_LAYER}.",
            id="realtime.E012",
        )


def _is_cluster(redis_url: str) -> bool:
    try:
        return bool(url.parse(redis_url).nodes)
    except ValueError:
        return False  # realtime.E010 reports it


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


def _operation(current: Conf) -> Iterator[CheckMessage]:
    if not current.metrics_token:
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
