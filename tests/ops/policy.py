"""Which boards a user may see: those that are not closed, and those that were granted; a revoke beats both."""

from __future__ import annotations

from realtime.auth import grants
from realtime.protocol.principal import Principal


async def boards_of_ops(principal: Principal, board_id: str) -> bool:
    return await _may_see("ops", principal, board_id)


async def boards_of_lab(principal: Principal, board_id: str) -> bool:
    return await _may_see("lab", principal, board_id)


async def _may_see(namespace: str, principal: Principal, board_id: str) -> bool:
    said = await grants.read(namespace, principal.user_id, f"board:{board_id}")
    return not board_id.startswith("closed") if said is None else said
