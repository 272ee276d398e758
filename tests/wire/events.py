"""Events of a shop, with a field of every type that a payload may have."""

# The type of an acknowledgement: with `from __future__ import annotations`, Python 3.11 would require every key.

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NotRequired, TypedDict
from uuid import UUID

import msgspec
from msgspec import Meta

from realtime.protocol.catalogue import client_event, server_event
from realtime.protocol.payloads import Id, Payload, PresenceGroup
from realtime.protocol.rooms import thread_room
from tests.wire.shapes import Cat, Dog, Level, Status, Tree


class Line(msgspec.Struct, rename="camel"):
    item_id: Id
    unit_price: Decimal
    note: str | None = None


class Order(Payload, frozen=True, kw_only=True):
    thread_id: Id
    order_id: UUID
    watcher_ids: list[Id]
    owners: dict[Id, Id]
    place: tuple[Id, int]
    lines: list[Line]
    tree: Tree
    pet: Cat | Dog
    status: Status
    level: Level
    priority: Literal[1, 2, 3]
    placed_at: Annotated[datetime, Meta(tz=True)]
    due: date | None
    lasts: timedelta
    total: Annotated[Decimal, Meta(description="in euros")]
    tags: set[Annotated[str, Meta(max_length=10)]]
    counts: dict[Level, int]
    group: PresenceGroup = PresenceGroup("sales")
    discount: float | None = None
    gift: bool | msgspec.UnsetType = msgspec.UNSET
    extra: Any = None


def to_thread(payload: Order) -> list[str]:
    return [thread_room(payload.thread_id)]


@server_event("order:changed", rooms=to_thread)
class OrderChanged(Order, frozen=True):
    """An order changed."""


@server_event("order:seen")
class OrderSeen(Payload, frozen=True):
    """A colleague looks at an order. */"""

    thread_id: Id
    user_id: Id
    line_ids: list[Id]
    at: datetime


class See(Payload, frozen=True):
    thread_id: Id
    line_ids: list[Id] = []


class Seen(TypedDict):
    """Who else looks at the order."""

    viewer_ids: list[Id]
    total: Decimal
    until: datetime
    level: Level
    line: Line
    closed: NotRequired[bool]


@client_event("order:see")
async def see(connection: Any, payload: See) -> Seen:
    """Show colleagues that this user looks at an order."""
    numbers: list[Any] = [int(line) for line in payload.line_ids]
    moment = datetime.fromisoformat("2026-03-01T12:00:00+00:00")
    await connection.emit(thread_room(payload.thread_id), "order:seen", line_ids=numbers, at=moment)
    return Seen(
        viewer_ids=numbers,
        total=Decimal("1.10"),
        until=moment,
        level=Level.HIGH,
        line=Line(item_id=numbers[0], unit_price=Decimal(1)),
    )
