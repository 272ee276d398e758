"""Access tokens for tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from realtime.auth.issuing import issue
from realtime.protocol.namespaces import namespaces


def issue_token(
    *,
    user: object,
    role: str,
    name: str = "",
    groups: Iterable[str] | None = None,
    threads: Iterable[object] = (),
    ttl: float = 3600,
    **claims: Any,
) -> str:
    """Sign an access token with the keys of the settings.

        token = issue_token(user=7, role="attendant", groups=["sales"], tenant="acme")

    Args:
        user: The user's id: text, a number or a UUID.
        role: The user's role.
        name: What other users see.
        groups: Presence groups; None leaves the claim out.
        threads: A customer's own threads.
        ttl: Seconds until the token expires; a negative number makes one that has expired.
        claims: Further claims. They may replace those that the other arguments make.

    Raises:
        ImproperlyConfigured: The settings have no key to sign with.
    """
    own = [str(thread) for thread in threads]
    return issue(user_id=str(user), role=role, name=name, groups=groups, threads=own, ttl=ttl, claims=claims)


def namespace_of(role: str) -> str:
    """The only namespace that lets users of this role in. Raises `ValueError` if there is none, or several."""
    found = [namespace.name for namespace in namespaces().values() if role in namespace.roles]
    if len(found) != 1:
        those = f"those of {', '.join(found)} do" if found else "none does"
        raise ValueError(f"namespace: expected one that lets the role {role!r} in, but {those}: name it")
    return found[0]
