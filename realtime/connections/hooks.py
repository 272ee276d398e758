"""What a namespace may decide, and learn, about each of its connections."""

from __future__ import annotations

from realtime.auth.tokens import Principal
from realtime.connections.rooms import Rooms
from realtime.protocol.rooms import user_room


class ConnectionHooks:
    """The methods that a namespace overrides. Unless stated otherwise, they do nothing here."""

    principal: Principal
    rooms: Rooms

    def initial_rooms(self) -> list[str]:
        """The rooms that are entered on connect: here, the user's own."""
        return [user_room(self.principal.user_id)]

    async def may_join(self, thread_id: str) -> bool:
        """Whether the user may enter the thread. Asked again on resume and when the token is refreshed."""
        raise NotImplementedError

    def threads(self) -> set[str]:
        """The threads for which `may_join` is asked again when rights may have changed: here, those it is in."""
        return self.rooms.threads()

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
