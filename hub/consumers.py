"""The team's side: attendants and admins, who see the queue and each other."""

from __future__ import annotations

import contextlib
from typing import Any

from django.utils.module_loading import import_string
from redis.exceptions import RedisError

from presence.store import Member
from presence.tracker import PresenceTracker, Presentee
from realtime.auth.tokens import Principal
from realtime.conf import conf
from realtime.connections.consumer import NamespaceConsumer
from realtime.protocol.rooms import HUB, PORTAL, presence_room, thread_of, thread_room, user_room
from realtime.tasks.serial import Action


class HubConsumer(NamespaceConsumer):
    """A connection to `/hub`."""

    namespace = HUB

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.presence = PresenceTracker.current()
        self._untold: set[str] = set()
        """Threads whose customers the client is about to be told."""

    @property
    def is_listed(self) -> bool:
        """Whether this user shows up in presence, or only watches."""
        return self.principal.role in conf().presence_roles

    def initial_rooms(self) -> list[str]:
        return [user_room(self.principal.user_id), *map(presence_room, self.principal.groups)]

    async def may_join(self, thread_id: str) -> bool:
        return bool(await import_string(conf().hub_thread_policy)(self.principal, thread_id))

    async def on_enter(self) -> None:
        if self.is_listed:
            await self.presence.connect(self._presentee())

    async def on_ready(self) -> None:
        for group in self.principal.groups:
            await self.send_presence_state(group)

    def on_frame(self) -> None:
        if self.is_listed:
            self.presence.seen(self.principal.user_id)

    async def on_heartbeat(self) -> None:
        if self.is_listed:
            self.presence.heartbeat(self.principal.user_id)

    async def on_principal_changed(self, previous: Principal) -> None:
        if self.is_listed and (previous.groups, previous.name) != (
            self.principal.groups,
            self.principal.name,
        ):
            await self.presence.connect(self._presentee(), refreshed=True)
        for group in self.principal.groups:
            if group not in previous.groups:
                self.rate.spend_bytes(await self._tell_presence(group))

    async def on_gone(self) -> None:
        self.presence.disconnect(self.connection_id)

    async def send_presence_state(self, group: str) -> None:
        """Who is in the group; replaces whatever the client knew."""
        await self._tell_presence(group)

    async def _tell_presence(self, group: str) -> int:
        """`send_presence_state`; returns the number of bytes."""
        room = presence_room(group)
        if room not in self.rooms:
            return 0
        if (found := await self._snapshot(self.presence, room, self.send_presence_state)) is None:
            return 0
        offset, members = found
        return self.write_event(
            "presence:state", {"group": group, "members": members, "total": len(members), "offset": offset}
        )

    async def send_customer_state(self, thread_id: str) -> None:
        """Which customers are in the thread; replaces whatever the client knew."""
        self._untold.discard(thread_id)
        room, customers = thread_room(thread_id), PresenceTracker.current(PORTAL)
        if room in self.rooms and (found := await self._snapshot(customers, room, self.send_customer_state)):
            offset, members = found
            lines = [{name: member[name] for name in ("user_id", "name", "since")} for member in members]
            self.write_event("customer:state", {"thread_id": thread_id, "customers": lines, "offset": offset})

    async def _snapshot(
        self, presence: PresenceTracker, room: str, again: Action
    ) -> tuple[str, list[Member]] | None:
        """Where a room stands, and who is there; None: not now, it is tried again."""
        _, _, group = room.partition(":")
        if not self.outlet.is_behind:
            with contextlib.suppress(RedisError, TimeoutError):
                # In this order: a change that comes while the list is read may be in it or not, and has a higher
                # offset.
                offset = str(self.rooms[room])
                members = await presence.snapshot(group)
                return (offset, members) if room in self.rooms else None  # expelled meanwhile
        # It replaces what is known: the one that comes when the client keeps up will do.
        self.after(1.0, f"state {room}", again, group)
        return None

    def _tell_customers(self, room: str) -> None:
        """Soon, and once if there are several reasons."""
        thread_id = thread_of(room)
        if conf().customer_presence and thread_id and thread_id not in self._untold:
            self._untold.add(thread_id)
            self.soon(self.send_customer_state, thread_id)

    def on_entered(self, room: str) -> None:
        self._tell_customers(room)

    async def on_gap(self, room: str) -> None:
        for group in self.principal.groups:
            if room == presence_room(group):
                await self.send_presence_state(group)
        self._tell_customers(room)

    def _presentee(self) -> Presentee:
        return Presentee(
            connection_id=self.connection_id,
            user_id=self.principal.user_id,
            name=self.principal.name,
            groups=self.principal.groups,
        )
