"""Which namespaces have presence, and whom presence lists there: the one place that knows.

A team is listed by the groups of its tokens: its users are online, away or offline. Customers are listed by thread:
they are there or not.
"""

from __future__ import annotations

from realtime.conf import conf
from realtime.protocol.rooms import HUB, PORTAL

OLDEST = HUB
"""Its keys in Redis and its signals carry no namespace: they are older than the second one."""
_CUSTOMERS = frozenset({PORTAL})


def teams() -> tuple[str, ...]:
    """Namespaces whose users are listed by group."""
    return (HUB,)


def customers() -> tuple[str, ...]:
    """Namespaces whose users are listed by thread: none without `CUSTOMER_PRESENCE`."""
    return tuple(sorted(_CUSTOMERS)) if conf().customer_presence else ()


def watchers() -> tuple[str, ...]:
    """Namespaces in which the members of a thread see its customers."""
    return (HUB,)


def with_presence() -> tuple[str, ...]:
    """All namespaces for which presence is kept."""
    return teams() + customers()


def lists_customers(namespace: str) -> bool:
    """Whether the groups of this namespace are threads, also while `CUSTOMER_PRESENCE` is off."""
    return namespace in _CUSTOMERS
