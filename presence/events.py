"""Presence on the wire: what attendants say about themselves, what their groups are told."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol, TypedDict, cast

import msgspec
from msgspec import Meta

from presence import store
from presence.tracker import PresenceTracker
from realtime.auth.tokens import Principal
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
from realtime.protocol.payloads import Empty, Id, Payload
from realtime.protocol.rooms import HUB, PORTAL, presence_room, thread_room
from realtime.tasks.serial import Action


class Listed(Protocol):
    """A connection whose user presence may list."""

    connection_id: str
    principal: Principal
    presence: PresenceTracker

    @property
    def is_listed(self) -> bool:
        """Whether presence lists this user."""

    def soon(self, action: Action, *args: Any) -> None:
        """Do something to it in its turn."""

    async def end(self, code: CloseCode, reason: str = "") -> None:
        """Close it, as something to do in its turn."""


class Attendant(Payload, frozen=True):
    """Somebody of the team, and since when they are seen like this."""

    user_id: Id
    name: str
    status: str
    since: str


@server_event("attendant:online", namespaces={HUB})
class AttendantOnline(Attendant, frozen=True):
    """Is available."""


@server_event("attendant:away", namespaces={HUB})
class AttendantAway(Attendant, frozen=True):
    """Chose to be away, or has not been heard of for a while."""


@server_event("attendant:offline", namespaces={HUB})
class AttendantOffline(Attendant, frozen=True):
    """Is gone: logged out, or did not come back within the grace period."""


class MemberOfGroup(TypedDict):
    """One line of `presence:state`."""

    user_id: str
    name: str
    status: str
    since: str


@server_event("presence:state", namespaces={HUB})
class PresenceState(Payload, frozen=True):
    """Everybody in a group; replaces whatever was known. Holds oneself, and users in their grace period."""

    group: Id
    members: list[MemberOfGroup]
    total: int
    offset: str


class Customer(InThread, frozen=True):
    """A customer whose thread it is, and since when they are seen like this."""

    user_id: Id
    name: str
    since: str


@server_event("customer:online", namespaces={HUB})
class CustomerOnline(Customer, frozen=True):
    """Has a page of yours open. Only with `CUSTOMER_PRESENCE`."""


@server_event("customer:offline", namespaces={HUB})
class CustomerOffline(Customer, frozen=True):
    """Did not come back within the grace period, or may not see the thread any more. Only with `CUSTOMER_PRESENCE`."""


class CustomerOfThread(TypedDict):
    """One line of `customer:state`."""

    user_id: str
    name: str
    since: str


@server_event("customer:state", namespaces={HUB})
class CustomerState(InThread, frozen=True):
    """The customers of a thread who are there; replaces whatever was known. Only with `CUSTOMER_PRESENCE`."""

    customers: list[CustomerOfThread]
    offset: str


@control_event("presence:set")
class PresenceSet(Payload, frozen=True):
    """Set a user's status as if they had chosen it."""

    user_id: Id
    status: Literal["online", "away"]


@on_bus("presence:set")
async def set_presence(payload: PresenceSet, context: BusContext) -> None:
    await store.apply(
        [
            {
                "does": "choose",
                "user": payload.user_id,
                "status": payload.status,
                "reason": "bus",
                "order": context.order,
            }
        ]
    )


# --- From clients --------------------------------------------------------------------------------


@client_event("presence:online", namespaces={HUB})
async def presence_online(connection: Listed, payload: Empty) -> None:
    """I am available (again)."""
    await connection.presence.choose(_listed(connection), "online")


@client_event("presence:away", namespaces={HUB})
async def presence_away(connection: Listed, payload: Empty) -> None:
    """I am away until I say otherwise."""
    await connection.presence.choose(_listed(connection), "away")


@client_event("presence:offline", namespaces={HUB})
async def presence_offline(connection: Listed, payload: Empty) -> None:
    """I log out: this connection ends, without grace period."""
    await connection.presence.logout(connection.connection_id)
    connection.soon(connection.end, CloseCode.NORMAL)


def _listed(connection: Listed) -> str:
    if not connection.is_listed:
        raise EventError(ErrorCode.FORBIDDEN, f"role {connection.principal.role!r} is not listed in presence")
    return connection.principal.user_id


# --- From the stream of transitions to rooms -----------------------------------------------------


@stream_entry("presence", field="transition")
class Transition(Payload, frozen=True, kw_only=True):
    """A change of a user's presence; entries are kept for 24 hours.

    An entry with `from` equal to `to` says that only the user's groups changed: `gained` and `lost`.
    """

    user_id: Id
    namespace: Literal["hub", "portal"]
    from_status: Literal["offline", "online", "away"] = msgspec.field(name="from")
    to_status: Literal["offline", "online", "away"] = msgspec.field(name="to")
    reason: Annotated[str, Meta(max_length=32)]
    at: Annotated[datetime, Meta(tz=True)]
    name: str
    groups: list[Id]
    since: Annotated[datetime, Meta(tz=True)] | None = None
    gained: list[Id] = []
    lost: list[Id] = []

    @property
    def is_regrouping(self) -> bool:
        """The status stays, the groups change."""
        return self.from_status == self.to_status


def parse_transition(raw: bytes) -> Transition:
    """Decode the field `transition` of a stream entry. Raises `InvalidMessage`."""
    try:
        return msgspec.json.decode(raw, type=Transition, dec_hook=lambda kind, value: Id(Id.parse(value)))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidMessage("invalid_transition", str(error)) from error


def announcements(raw: bytes) -> list[BusMessage]:
    """Who is told what about a transition. Raises `InvalidMessage`."""
    transition = parse_transition(raw)
    if transition.namespace == PORTAL:
        return _announce_customer(transition)
    if transition.is_regrouping:
        since = transition.since or transition.at
        return [
            _announce(transition, transition.to_status, since, transition.gained),
            _announce(transition, "offline", transition.at, transition.lost),
        ]
    return [_announce(transition, transition.to_status, transition.at, transition.groups)]


def _announce_customer(transition: Transition) -> list[BusMessage]:
    if transition.is_regrouping:
        since = transition.since or transition.at
        changes = [("online", since, transition.gained), ("offline", transition.at, transition.lost)]
    else:
        changes = [(transition.to_status, transition.at, transition.groups)]
    return [
        BusMessage(
            event=f"customer:{status}",
            payload=transition,
            tail=frame_tail(
                {
                    "thread_id": thread_id,
                    "user_id": transition.user_id,
                    "name": transition.name,
                    "since": _iso(since),
                }
            ),
            targets=((HUB, thread_room(thread_id)),),
        )
        for status, since, threads in changes
        for thread_id in threads
    ]


def _announce(transition: Transition, status: str, since: datetime, groups: Sequence[str]) -> BusMessage:
    data = {
        "user_id": transition.user_id,
        "name": transition.name,
        "status": status,
        "since": _iso(since),
    }
    return BusMessage(
        event=f"attendant:{status}",
        payload=transition,
        tail=frame_tail(data),
        targets=tuple((HUB, presence_room(group)) for group in groups),
    )


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@on_bus("attendant:online")
@on_bus("attendant:away")
@on_bus("attendant:offline")
async def tell_nodes(payload: Payload, context: BusContext) -> None:
    transition = cast(Transition, payload)
    if not transition.is_regrouping:
        await broadcast(
            PresenceChanged(
                user_id=transition.user_id,
                status=transition.to_status,
                chosen=transition.to_status == "away" and transition.reason in {"chosen", "bus"},
                since=transition.at.timestamp() * 1000,
            )
        )
