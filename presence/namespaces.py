"""Which namespaces have presence, and whom presence lists there: the one place that knows.

A team is listed by the groups of its tokens: its users are online, away or offline. Customers are listed by thread:
they are there or not.
"""

from __future__ import annotations

from realtime.conf import cached, conf
from realtime.protocol.namespaces import THREAD, Namespace, Presence, namespaces

OLDEST = "hub"
"""Its keys in Redis and its signals carry no namespace: they are older than the second one."""


def is_watcher(namespace: Namespace) -> bool:
    """Whether the members of a thread see its customers in this namespace."""
    return namespace.presence is Presence.TEAM and namespace.kind(THREAD.name) is not None


@cached()
def teams() -> tuple[str, ...]:
    """Namespaces whose users are listed by group."""
    return tuple(name for name, namespace in namespaces().items() if namespace.presence is Presence.TEAM)


@cached()
def customers() -> tuple[str, ...]:
    """Namespaces whose users are listed by thread: none without `CUSTOMER_PRESENCE`."""
    return tuple(filter(lists_customers, namespaces())) if conf().customer_presence else ()


@cached()
def watchers() -> tuple[str, ...]:
    """Namespaces in which the members of a thread see its customers."""
    return tuple(name for name, namespace in namespaces().items() if is_watcher(namespace))


def with_presence() -> tuple[str, ...]:
    """All namespaces for which presence is kept."""
    return teams() + customers()


def require_presence(namespace: str) -> None:
    """Raise `ValueError` for a namespace without presence: its list of users would always be empty."""
    names = [*teams(), *filter(lists_customers, namespaces())]
    if namespace not in names:
        raise ValueError(
            f"namespace: expected one with presence ({', '.join(names) or 'none'}), got {namespace!r}"
        )


def lists_customers(namespace: str) -> bool:
    """Whether the groups of this namespace are threads, also while `CUSTOMER_PRESENCE` is off."""
    return namespace in namespaces() and namespaces()[namespace].presence is Presence.CUSTOMERS
