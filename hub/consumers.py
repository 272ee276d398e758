"""The team's side: attendants and admins, who see the queue and each other."""

from __future__ import annotations

from typing import Any

from django.utils.module_loading import import_string
from redis.exceptions import RedisError

from presence.node import PresenceNode, Presentee
from realtime.authentication import Principal
from realtime.conf import conf
from realtime.consumers import NamespaceConsumer
from realtime.rooms import HUB, presence_room, user_room


class HubConsumer(NamespaceConsumer):
    """A connection to `/hub`."""

    namespace = HUB

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.presence = PresenceNode.current()

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

    async def receive(self, *args: Any, **kwargs: Any) -> None:
        if self.is_listed:
            self.presence.seen(self.principal.user_id)
        await super().receive(*args, **kwargs)

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
                await self.send_presence_state(group)

    async def on_gone(self) -> None:
        self.presence.disconnect(self.connection_id)

    async def send_presence_state(self, group: str) -> None:
        """Who is in the group; replaces whatever the client knew."""
        room = presence_room(group)
        if room not in self.rooms:
            return
        if self.is_behind:
            # It replaces what is known: the one that comes when the client keeps up will do.
            self.after(1.0, f"state {group}", self.send_presence_state, group)
            return
        try:
            # In this order: a change that comes while the list is read may be in it or not, and has a higher offset.
            offset = self.position(room)
            members = await self.presence.snapshot(group)
        except (RedisError, TimeoutError):
            self.after(1.0, f"state {group}", self.send_presence_state, group)
            return
        await self.send_event(
            "presence:state",
            {"group": group, "members": members, "total": len(members), "offset": str(offset)},
        )

    async def on_gap(self, room: str) -> None:
        for group in self.principal.groups:
            if room == presence_room(group):
                await self.send_presence_state(group)

    def _presentee(self) -> Presentee:
        return Presentee(
            connection_id=self.connection_id,
            user_id=self.principal.user_id,
            name=self.principal.name,
            groups=self.principal.groups,
        )
