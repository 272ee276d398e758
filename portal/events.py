"""Who may see which thread: control events that the backbone sends for customers."""

from __future__ import annotations

from portal import grants
from realtime.layers.signals import ThreadRevoked, broadcast
from realtime.protocol.catalogue import BusContext, control_event, on_bus
from realtime.protocol.events import ChatAccepted, InThread
from realtime.protocol.payloads import Id


class ThreadRight(InThread, frozen=True):
    """A thread and the portal user whose right changes."""

    user_id: Id


@control_event("thread:grant")
class ThreadGrant(ThreadRight, frozen=True):
    """This portal user may join the thread."""


@control_event("thread:revoke")
class ThreadRevoke(ThreadRight, frozen=True):
    """This portal user may no longer see the thread; live connections leave it."""


@on_bus("thread:grant")
async def grant(payload: ThreadGrant, context: BusContext) -> None:
    await grants.write(payload.user_id, payload.thread_id, granted=True, order=context.order)


@on_bus("thread:revoke")
async def revoke(payload: ThreadRevoke, context: BusContext) -> None:
    # Written before it is signalled: who joins in between finds the revoke.
    if await grants.write(payload.user_id, payload.thread_id, granted=False, order=context.order):
        await broadcast(ThreadRevoked(user_id=payload.user_id, thread_id=payload.thread_id, at=context.at))


@on_bus("chat:accepted")
async def grant_accepted_chat(payload: ChatAccepted, context: BusContext) -> None:
    if payload.user_id is not None:
        await grants.write(payload.user_id, payload.thread_id, granted=True, order=context.order)
