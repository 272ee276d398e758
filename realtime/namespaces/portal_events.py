"""The events of the portal: chats, and a customer's rights to threads."""

from __future__ import annotations

from collections.abc import Sequence

from realtime.auth import grants
from realtime.namespaces.portal import PORTAL
from realtime.protocol.catalogue import BusContext, Target, control_event, on_bus, server_event
from realtime.protocol.events import InThread, in_thread
from realtime.protocol.namespaces import THREAD, uses
from realtime.protocol.payloads import Id
from realtime.protocol.rooms import thread_room, user_room


def _accepted(payload: ChatAccepted) -> Sequence[str | Target]:
    rooms: list[str | Target] = [thread_room(payload.thread_id)]
    if payload.user_id is not None:
        rooms.append((frozenset({PORTAL.name}), user_room(payload.user_id)))
    return rooms


@server_event("chat:accepted", namespaces=uses(THREAD), rooms=_accepted)
class ChatAccepted(InThread, frozen=True):
    """An attendant accepted a customer's chat. The customer `user_id` is granted the thread, and gets the event too."""

    attendant_id: Id
    user_id: Id | None = None


@server_event("chat:ended", namespaces=uses(THREAD), rooms=in_thread)
class ChatEnded(InThread, frozen=True):
    """A chat has ended."""


class ThreadRight(InThread, frozen=True):
    """A thread and the portal user whose right changes."""

    user_id: Id


@control_event("thread:grant")
class ThreadGrant(ThreadRight, frozen=True):
    """Allow this portal user to join the thread."""


@control_event("thread:revoke")
class ThreadRevoke(ThreadRight, frozen=True):
    """Revoke this portal user's right to the thread; live connections leave it."""


@on_bus("thread:grant", is_order=True)
async def grant(payload: ThreadGrant, context: BusContext) -> None:
    await grants.grant(PORTAL.name, payload.user_id, thread_room(payload.thread_id), context)


@on_bus("thread:revoke", is_order=True)
async def revoke(payload: ThreadRevoke, context: BusContext) -> None:
    await grants.revoke(PORTAL.name, payload.user_id, thread_room(payload.thread_id), context)


@on_bus("chat:accepted", is_order=True)
async def grant_accepted_chat(payload: ChatAccepted, context: BusContext) -> None:
    if payload.user_id is not None:
        await grants.grant(PORTAL.name, payload.user_id, thread_room(payload.thread_id), context)
