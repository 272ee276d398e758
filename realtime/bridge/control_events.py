"""Control events that concern one instance."""

from __future__ import annotations

from realtime.layers.signals import InstanceDrained, broadcast
from realtime.protocol.catalogue import BusContext, control_event, on_bus
from realtime.protocol.payloads import Id, Payload


@control_event("instance:drain")
class InstanceDrain(Payload, frozen=True):
    """Drain an instance: it closes all its connections within `DRAIN_SECONDS` and exits, as on SIGTERM."""

    instance: Id


@on_bus("instance:drain", is_order=True)
async def drain_instance(payload: InstanceDrain, context: BusContext) -> None:
    await broadcast(InstanceDrained(instance=payload.instance))
