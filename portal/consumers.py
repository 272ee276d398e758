"""The customers' side: each sees their own chats and nothing else."""

from __future__ import annotations

from django.utils.module_loading import import_string

from presence.connection import CustomerPresence
from realtime.conf import conf
from realtime.protocol.rooms import PORTAL


class PortalConsumer(CustomerPresence):
    """A connection to `/portal`."""

    namespace = PORTAL

    async def may_join(self, thread_id: str) -> bool:
        return bool(await import_string(conf().portal_thread_policy)(self.principal, thread_id))
