"""The queue: work that waits for somebody of the team. And taking one of them out of a thread."""

from __future__ import annotations

from collections.abc import Sequence

from realtime.auth import revocation
from realtime.layers.signals import ThreadRevoked, broadcast
from realtime.protocol.catalogue import BusContext, control_event, on_bus, server_event
from realtime.protocol.events import InThread
from realtime.protocol.payloads import Id, Payload, PresenceGroup
from realtime.protocol.rooms import HUB, presence_room


class QueueEvent(Payload, frozen=True, kw_only=True):
    """`group` is the team whose queue it is."""

    group: PresenceGroup = PresenceGroup("attendants")


def _queue(payload: QueueEvent) -> Sequence[str]:
    return [presence_room(payload.group)]


@server_event("queue:new", namespaces={HUB}, rooms=_queue)
class QueueNew(QueueEvent, frozen=True, kw_only=True):
    """Something waits."""

    item_id: Id


@server_event("queue:taken", namespaces={HUB}, rooms=_queue)
class QueueTaken(QueueEvent, frozen=True, kw_only=True):
    """Somebody took it."""

    item_id: Id


@server_event("queue:updated", namespaces={HUB}, rooms=_queue)
class QueueUpdated(QueueEvent, frozen=True, kw_only=True):
    """The queue changed in some other way: refetch it."""


@control_event("thread:expel")
class ThreadExpel(InThread, frozen=True):
    """Take this member of the team out of the thread, in every tab. Nothing keeps them from joining it again."""

    user_id: Id


@on_bus("thread:expel")
async def expel(payload: ThreadExpel, context: BusContext) -> None:
    if await revocation.mark_expelled(HUB, payload.user_id, payload.thread_id, context.at):
        await broadcast(
            ThreadRevoked(
                user_id=payload.user_id,
                thread_id=payload.thread_id,
                namespace=HUB,
                reason="expelled",
                at=context.at,
            )
        )
