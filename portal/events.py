"""Chats, and who may see which thread: events that the backbone sends about customers."""

from __future__ import annotations

from collections.abc import Sequence

from portal.namespace import PORTAL
from realtime.auth import grants
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
    """An attendant took a customer's chat. With `user_id`, that customer is granted the thread and told in person."""

    attendant_id: Id
    user_id: Id | None = None


@server_event("chat:ended", namespaces=uses(THREAD), rooms=in_thread)
class ChatEnded(InThread, frozen=True):
    """A chat is over."""


class ThreadRight(InThread, frozen=True):
    """A thread and the portal user whose right changes."""

    user_id: Id


@control_event("thread:grant")
class ThreadGrant(ThreadRight, frozen=True):
    """This portal user may join the thread."""


@control_event("thread:revoke")
class ThreadRevoke(ThreadRight, frozen=True):
    """This portal user may no longer see the thread; live connections leave it."""


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
