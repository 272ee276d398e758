"""The team's side: attendants and admins, who see the queue and each other."""

from __future__ import annotations

from django.utils.module_loading import import_string

from presence.connection import CustomerStates, TeamPresence
from realtime.conf import conf
from realtime.protocol.rooms import HUB, presence_room, user_room


class HubConsumer(CustomerStates, TeamPresence):
    """A connection to `/hub`."""

    namespace = HUB

    def initial_rooms(self) -> list[str]:
        return [user_room(self.principal.user_id), *map(presence_room, self.principal.groups)]

    async def may_join(self, thread_id: str) -> bool:
        return bool(await import_string(conf().hub_thread_policy)(self.principal, thread_id))
