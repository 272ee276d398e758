"""The customers' namespace, `/portal/`: each customer sees their own threads and nothing else."""

from __future__ import annotations

from realtime.protocol.namespaces import THREAD, Namespace, Presence

PORTAL = Namespace(
    name="portal",
    roles=("customer",),
    kinds=(THREAD,),
    policies={"thread": "portal.policy.own_threads"},
    presence=Presence.CUSTOMERS,
    events=("realtime.namespaces.portal_events",),
    consumer="presence.connection.CustomerPresence",
    has_unnamed_grants=True,
)
