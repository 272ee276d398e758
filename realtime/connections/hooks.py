"""What a namespace may decide, and learn, about each of its connections."""

from __future__ import annotations

import logging
from typing import ClassVar

from realtime.connections.rooms import Rooms
from realtime.protocol.namespaces import Namespace, Presence
from realtime.protocol.principal import Principal
from realtime.protocol.rooms import is_room, user_room

logger = logging.getLogger(__name__)


class ConnectionHooks:
    """The methods that a namespace overrides. Unless stated otherwise, they do nothing here."""

    keeps_presence: ClassVar[Presence] = Presence.NONE
    """What such connections keep of whether their users are there; a namespace that declares it needs one that does."""
    declared: Namespace
    principal: Principal
    rooms: Rooms

    @property
    def user(self) -> tuple[str, str]:
        """Namespace and user id."""
        return self.declared.name, self.principal.user_id

    def initial_rooms(self) -> list[str]:
        """The rooms that are entered on connect: here, the user's own and those that the namespace declares."""
        rooms = {user_room(self.principal.user_id): None}
        for room in self.declared.initial_rooms(self.principal):
            if self._is_initial(room):
                rooms[room] = None
            else:
                logger.error("initial room left out", extra={"room": repr(room)[:80]})
        return list(rooms)

    def _is_initial(self, room: object) -> bool:
        declared = self.declared
        return (
            isinstance(room, str)
            and is_room(room)
            and declared.has_room(room)
            and not declared.may_join(room)
        )

    async def may_enter(self, room: str) -> bool:
        """Whether the user may be in the room. Asked again on resume and when the token is refreshed."""
        return not self.declared.may_join(room) or await self.declared.allows(self.principal, room)

    def joined_rooms(self) -> set[str]:
        """The rooms for which `may_enter` is asked again when rights may have changed: here, those it has joined."""
        return {room for room in self.rooms if self.declared.may_join(room)}

    async def on_enter(self) -> None:
        """The handshake is about to be accepted. An exception refuses it."""

    async def on_ready(self) -> None:
        """`connection:ready` has been written."""

    def on_frame(self) -> None:
        """The client sent a frame, valid or not."""

    async def on_heartbeat(self) -> None:
        """The client sent `heartbeat`."""

    def on_entered(self, room: str) -> None:
        """The connection has entered a room; the answer to the client is still to be written."""

    def on_expelled(self, room: str) -> None:
        """The user lost the right to a room, whether or not this connection was in it."""

    async def on_gap(self, room: str) -> None:
        """The client was told that publications of this room are lost."""

    async def on_principal_changed(self, previous: Principal) -> None:
        """The token was refreshed, perhaps with other claims."""

    async def on_gone(self) -> None:
        """The connection is over. Called once, also for a handshake that was refused."""
