"""Presence on the wire: the events that attendants send, and those that groups and threads receive."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, cast

import msgspec
from msgspec import Meta

from presence import store
from presence.namespaces import OLDEST, is_watcher, lists_customers, teams, watchers
from realtime.layers.signals import PresenceChanged, broadcast
from realtime.protocol.bus_message import BusMessage, InvalidMessage
from realtime.protocol.catalogue import (
    BusContext,
    client_event,
    control_event,
    on_bus,
    server_event,
    stream_entry,
)
from realtime.protocol.close_codes import CloseCode
from realtime.protocol.envelope import ErrorCode, EventError, frame_tail
from realtime.protocol.events import InThread
from realtime.protocol.namespaces import Presence, namespaces, shows
from realtime.protocol.nesting import check_nesting
from realtime.protocol.payloads import Empty, Id, Payload, PresenceGroup, decode_id
from realtime.protocol.rooms import presence_room, thread_room

if TYPE_CHECKING:  # publishers have these events in their catalogue, and need nothing that the handlers need
    from presence.connection import TeamPresence

TEAMS = shows(Presence.TEAM)


class Attendant(Payload, frozen=True):
    """A member of the team, and the time since which the status holds."""

    user_id: Id
    name: str
    status: str
    since: str


@server_event("attendant:online", namespaces=TEAMS)
class AttendantOnline(Attendant, frozen=True):
    """The attendant is available."""


@server_event("attendant:away", namespaces=TEAMS)
class AttendantAway(Attendant, frozen=True):
    """The attendant chose to be away, or has sent no heartbeat for `AWAY_AFTER`."""


@server_event("attendant:offline", namespaces=TEAMS)
class AttendantOffline(Attendant, frozen=True):
    """The attendant logged out, or did not come back within the grace period."""


@server_event("presence:state", namespaces=TEAMS)
class PresenceState(Payload, frozen=True):
    """All members of a group, the receiver and users in their grace period included. Replaces the previous state."""

    group: PresenceGroup
    members: list[store.Member]
    total: int
    offset: str


class Customer(InThread, frozen=True):
    """A customer of a thread, and since when they have been there or not."""

    user_id: Id
    name: str
    since: str


@server_event("customer:online", namespaces=is_watcher)
class CustomerOnline(Customer, frozen=True):
    """The customer has opened a page. Only with `CUSTOMER_PRESENCE`."""


@server_event("customer:offline", namespaces=is_watcher)
class CustomerOffline(Customer, frozen=True):
    """The customer did not come back within the grace period, or may not see the thread any more. Only with
    `CUSTOMER_PRESENCE`."""


class CustomerOfThread(TypedDict):
    """One line of `customer:state`."""

    user_id: str
    name: str
    since: str


@server_event("customer:state", namespaces=is_watcher)
class CustomerState(InThread, frozen=True):
    """The customers who are there, of one thread. Replaces the previous state. Only with `CUSTOMER_PRESENCE`."""

    customers: list[CustomerOfThread]
    offset: str


@control_event("presence:set")
class PresenceSet(Payload, frozen=True):
    """Set the status of a user, as if they had chosen it."""

    user_id: Id
    status: Literal["online", "away"]
    namespace: str = OLDEST

    def __post_init__(self) -> None:
        if self.namespace not in teams():
            raise ValueError(f"namespace: expected one of {', '.join(teams())}")


@on_bus("presence:set", is_order=True)
async def set_presence(payload: PresenceSet, context: BusContext) -> None:
    choice = {
        "does": "choose",
        "user": payload.user_id,
        "status": payload.status,
        "reason": "bus",
        "order": context.order,
    }
    await store.apply(payload.namespace, [choice])


# --- From clients --------------------------------------------------------------------------------


@client_event("presence:online", namespaces=TEAMS)
async def presence_online(connection: TeamPresence, payload: Empty) -> None:
    """The user is available (again)."""
    await connection.presence.choose(_listed(connection), "online")


@client_event("presence:away", namespaces=TEAMS)
async def presence_away(connection: TeamPresence, payload: Empty) -> None:
    """The user is away, until `presence:online`."""
    await connection.presence.choose(_listed(connection), "away")


@client_event("presence:offline", namespaces=TEAMS)
async def presence_offline(connection: TeamPresence, payload: Empty) -> None:
    """The user logs out: this connection ends without a grace period."""
    await connection.presence.logout(connection.connection_id)
    connection.soon(connection.terminate, CloseCode.NORMAL)


def _listed(connection: TeamPresence) -> str:
    if not connection.is_listed:
        raise EventError(ErrorCode.FORBIDDEN, f"role {connection.principal.role!r} is not listed in presence")
    return connection.principal.user_id


# --- From the stream of transitions to rooms -----------------------------------------------------


@stream_entry("presence", field="transition")
class Transition(Payload, frozen=True, kw_only=True):
    """A change of a user's presence; entries are kept for 24 hours.

    In an entry with `from` equal to `to` only the user's groups changed: `gained` and `lost`.
    """

    user_id: Id
    namespace: str
    from_status: Literal["offline", "online", "away"] = msgspec.field(name="from")
    to_status: Literal["offline", "online", "away"] = msgspec.field(name="to")
    reason: Annotated[str, Meta(max_length=32)]
    at: Annotated[datetime, Meta(tz=True)]
    name: str
    groups: list[PresenceGroup]
    """For a customer: threads."""
    since: Annotated[datetime, Meta(tz=True)] | None = None
    gained: list[PresenceGroup] = []
    lost: list[PresenceGroup] = []

    @property
    def is_regrouping(self) -> bool:
        """The status stays, the groups change."""
        return self.from_status == self.to_status


def parse_transition(raw: bytes) -> Transition:
    """Decode the field `transition` of a stream entry. Raises `InvalidMessage`."""
    try:
        check_nesting(raw.decode())
        transition = msgspec.json.decode(raw, type=Transition, dec_hook=decode_id)
    except ValueError as error:  # and msgspec's errors, which are
        raise InvalidMessage("invalid_transition", str(error)) from error
    if transition.namespace not in namespaces():
        expected = f"expected one of {sorted(namespaces())}, got {transition.namespace[:64]!r}"
        raise InvalidMessage("invalid_transition", f"namespace: {expected}")
    return transition


def announcements(raw: bytes) -> list[BusMessage]:
    """The events that announce a transition in the rooms that it concerns. Raises `InvalidMessage`."""
    transition = parse_transition(raw)
    announce = _announce_customer if lists_customers(transition.namespace) else _announce_attendant
    if not transition.is_regrouping:
        return announce(transition, transition.to_status, transition.at, transition.groups)
    since = transition.since or transition.at
    return [
        *announce(transition, transition.to_status, since, transition.gained),
        *announce(transition, "offline", transition.at, transition.lost),
    ]


def _announce_attendant(
    transition: Transition, status: str, since: datetime, groups: Sequence[str]
) -> list[BusMessage]:
    data = {"user_id": transition.user_id, "name": transition.name, "status": status, "since": _iso(since)}
    targets = tuple((transition.namespace, presence_room(group)) for group in groups)
    return [
        BusMessage(event=f"attendant:{status}", payload=transition, tail=frame_tail(data), targets=targets)
    ]


def _announce_customer(
    transition: Transition, status: str, since: datetime, threads: Sequence[str]
) -> list[BusMessage]:
    data = {"user_id": transition.user_id, "name": transition.name, "since": _iso(since)}
    return [
        BusMessage(
            event=f"customer:{status}",
            payload=transition,
            tail=frame_tail({"thread_id": thread_id, **data}),
            targets=tuple((namespace, thread_room(thread_id)) for namespace in watchers()),
        )
        for thread_id in threads
    ]


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@on_bus("attendant:online", is_order=True)
@on_bus("attendant:away", is_order=True)
@on_bus("attendant:offline", is_order=True)
async def tell_instances(payload: Payload, context: BusContext) -> None:
    transition = cast(Transition, payload)
    if not transition.is_regrouping:
        await broadcast(
            PresenceChanged(
                user_id=transition.user_id,
                namespace=transition.namespace,
                status=transition.to_status,
                chosen=transition.to_status == "away" and transition.reason in {"chosen", "bus"},
                since=transition.at.timestamp() * 1000,
            )
        )
