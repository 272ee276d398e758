"""Boards: what changes on them, and where people point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from realtime.protocol.catalogue import client_event, server_event
from realtime.protocol.envelope import ErrorCode, EventError
from realtime.protocol.namespaces import uses
from realtime.protocol.payloads import Id, Payload
from tests.ops.namespace import BOARD

if TYPE_CHECKING:
    from realtime.connections.consumer import NamespaceConsumer


class OfBoard(Payload, frozen=True):
    """Anything that belongs to one board."""

    board_id: Id


@server_event("board:changed", namespaces=uses(BOARD), rooms=lambda payload: [BOARD.room(payload.board_id)])
class BoardChanged(OfBoard, frozen=True):
    """A board changed."""


class Point(OfBoard, frozen=True):
    """A supervisor points at a place on the board."""

    position: msgspec.Raw


@server_event("board:pointed", namespaces=uses(BOARD))
class Pointed(Point, frozen=True):
    """A supervisor points at a place on the board."""


@client_event("board:point", namespaces=uses(BOARD))
async def point(connection: NamespaceConsumer, payload: Point) -> None:
    """I point here."""
    room = BOARD.room(payload.board_id)
    if room not in connection.rooms:
        raise EventError(ErrorCode.NOT_IN_ROOM, f"join {room} first")
    await connection.emit(room, "board:pointed", board_id=payload.board_id, position=payload.position)
