"""Which threads a customer may see."""

from __future__ import annotations

from realtime.auth import grants
from realtime.namespaces.portal import PORTAL
from realtime.protocol.principal import Principal
from realtime.protocol.rooms import thread_room


async def own_threads(principal: Principal, thread_id: str) -> bool:
    """Those of the token's `threads` claim and those granted over the bus; a revoke beats the claim."""
    said = await grants.read(PORTAL.name, principal.user_id, thread_room(thread_id))
    return thread_id in principal.threads if said is None else said
