"""The events of the hub: the team's queue, and events that concern one member of the team."""

from __future__ import annotations

from collections.abc import Sequence

from realtime.auth import revocation
from realtime.namespaces.hub import HUB
from realtime.protocol.catalogue import BusContext, control_event, on_bus, server_event
from realtime.protocol.events import InThread
from realtime.protocol.payloads import Id, Payload, PresenceGroup
from realtime.protocol.rooms import presence_room, thread_room, user_room


class QueueEvent(Payload, frozen=True, kw_only=True):
    """`group` is the team whose queue it is."""

    group: PresenceGroup = PresenceGroup("attendants")


def _queue(payload: QueueEvent) -> Sequence[str]:
    return [presence_room(payload.group)]


@server_event("queue:new", namespaces={HUB.name}, rooms=_queue)
class QueueNew(QueueEvent, frozen=True, kw_only=True):
    """An item was added to the queue."""

    item_id: Id


@server_event("queue:taken", namespaces={HUB.name}, rooms=_queue)
class QueueTaken(QueueEvent, frozen=True, kw_only=True):
    """An attendant took an item from the queue."""

    item_id: Id


@server_event("queue:updated", namespaces={HUB.name}, rooms=_queue)
class QueueUpdated(QueueEvent, frozen=True, kw_only=True):
    """The queue changed in another way: refetch it."""


@server_event(
    "user:notification",
    default_namespaces={HUB.name},
    rooms=lambda payload: [user_room(payload.user_id)],
)
class UserNotification(Payload, frozen=True):
    """A notification for one user, in every tab. It goes to the hub's user unless `namespaces` says otherwise."""

    user_id: Id


@control_event("thread:expel")
class ThreadExpel(InThread, frozen=True):
    """Remove this member of the team from the thread, in every tab. The member may join it again."""

    user_id: Id


@on_bus("thread:expel", is_order=True)
async def expel(payload: ThreadExpel, context: BusContext) -> None:
    await revocation.expel(HUB.name, payload.user_id, thread_room(payload.thread_id), context.at)
