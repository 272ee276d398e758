"""What a backbone tells one socket process."""

from __future__ import annotations

from realtime.layers.signals import InstanceDrained, broadcast
from realtime.protocol.catalogue import BusContext, control_event, on_bus
from realtime.protocol.payloads import Id, Payload


@control_event("instance:drain")
class InstanceDrain(Payload, frozen=True):
    """Let this socket process close everybody within `DRAIN_SECONDS` and end, as on SIGTERM."""

    instance: Id


@on_bus("instance:drain", is_order=True)
async def drain_instance(payload: InstanceDrain, context: BusContext) -> None:
    await broadcast(InstanceDrained(instance=payload.instance))
