"""Which threads the team may see."""

from __future__ import annotations

from realtime.protocol.principal import Principal


async def any_thread(principal: Principal, thread_id: str) -> bool:
    """All of them."""
    return True
