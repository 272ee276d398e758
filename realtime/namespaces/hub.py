"""The team's namespace, `/hub/`: attendants and admins, who see the queue, each other, and every thread."""

from __future__ import annotations

from realtime.protocol.namespaces import PRESENCE, THREAD, Namespace, Presence
from realtime.protocol.rooms import presence_rooms

HUB = Namespace(
    name="hub",
    roles=("attendant", "admin"),
    kinds=(PRESENCE, THREAD),
    policies={"thread": "hub.policy.any_thread"},
    initial_rooms=presence_rooms,
    presence=Presence.TEAM,
    presence_roles=("attendant",),
    events=("presence.events", "realtime.namespaces.hub_events"),
    consumer="hub.consumers.HubConsumer",
)
