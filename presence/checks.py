"""The system check of presence: whether the connections of a namespace keep the presence that it declares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured

from presence.connection import CustomerPresence, TeamPresence
from realtime.protocol.namespaces import Namespace, Presence, namespaces

_CONSUMERS: dict[Presence, type] = {Presence.TEAM: TeamPresence, Presence.CUSTOMERS: CustomerPresence}


@register("realtime")
def check_consumers(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Find namespaces with presence whose consumer keeps none. What else is wrong, `realtime.checks` says."""
    try:
        return [error for namespace in namespaces().values() for error in _without_presence(namespace)]
    except (ImproperlyConfigured, ImportError):
        return []


def _without_presence(namespace: Namespace) -> Iterator[CheckMessage]:
    needed, found = _CONSUMERS.get(namespace.presence), namespace.consumer_class
    if needed and isinstance(found, type) and not issubclass(found, needed):
        yield Error(
            f"The consumer of the namespace {namespace.name!r}, {found.__name__}, keeps no presence",
            hint=f"Expected {needed.__module__}.{needed.__qualname__}, or a class derived from it.",
            id="realtime.E021",
        )
