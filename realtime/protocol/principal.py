"""The user behind a connection, as their token describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec

from realtime.protocol.namespaces import namespaces


@dataclass(frozen=True, slots=True)
class Principal:
    """The user of a connection. Policies get it, and handlers of client events read `connection.principal`.

    Example of a policy:

        async def own_region(principal: Principal, thread_id: str) -> bool:
            return thread_id.startswith(f"{principal.claims.get('region')}-")
    """

    user_id: str
    role: str
    name: str
    groups: tuple[str, ...]
    threads: frozenset[str]
    jti: str
    """The id of the token: its claim, or a digest of a token that has none."""
    expires_at: float
    """Seconds since the epoch, as the token says; the leeway comes on top."""
    encoded_claims: bytes = field(default=b"{}", repr=False)
    """The JSON of `claims`. A connection keeps it for as long as it lives, and it is much smaller than the values."""

    @property
    def claims(self) -> Mapping[str, Any]:
        """All claims of the token, read-only to the bottom: objects are mappings, arrays are tuples.

        They are decoded at each access, which takes some microseconds: put them into a variable to read several. They
        are as large as a token may be, and nested at most 100 levels deep.
        """
        claims: Mapping[str, Any] = _frozen(msgspec.json.decode(self.encoded_claims))
        return claims

    def may_enter(self, namespace: str) -> bool:
        """Whether this role belongs in the namespace."""
        return self.role in namespaces()[namespace].roles


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({name: _frozen(item) for name, item in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
