"""The customers' side: each sees their own chats and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from django.utils.module_loading import import_string

from presence.tracker import PresenceTracker, Presentee
from realtime.auth.tokens import Principal
from realtime.conf import conf
from realtime.connections.consumer import NamespaceConsumer
from realtime.protocol.rooms import PORTAL, thread_of, thread_room


class PortalConsumer(NamespaceConsumer):
    """A connection to `/portal`.

    With `CUSTOMER_PRESENCE` the team is told who is there, thread by thread: in those of the token's claim, and in
    those the connection has joined. Leaving the room of a thread does not count as going away; losing the right does.
    """

    namespace = PORTAL

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.presence = PresenceTracker.current(PORTAL) if conf().customer_presence else None
        self._threads: set[str] = set()
        """Where the customer is seen through this connection."""
        self._expelled: set[str] = set()
        """Rooms that were revoked since rights were last asked for."""

    async def may_join(self, thread_id: str) -> bool:
        return bool(await import_string(conf().portal_thread_policy)(self.principal, thread_id))

    async def on_enter(self) -> None:
        if self.presence is not None:
            self._threads = await self._allowed(self._claimed())
            await self.presence.connect(self._presentee())

    def on_frame(self) -> None:
        if self.presence is not None:
            self.presence.seen(self.principal.user_id)

    def on_entered(self, room: str) -> None:
        thread_id = thread_of(room)
        if self.presence is not None and thread_id and thread_id not in self._threads and room in self.rooms:
            self._threads.add(thread_id)
            self.presence.regroup(self._presentee())

    def threads(self) -> set[str]:
        return super().threads() | self._threads

    def on_expelled(self, room: str) -> None:
        self._expelled.add(room)
        thread_id = thread_of(room)
        if self.presence is not None and thread_id in self._threads:
            self._threads.remove(thread_id)
            self.presence.regroup(self._presentee(), dropped=[thread_id])

    async def on_principal_changed(self, previous: Principal) -> None:
        if self.presence is not None:
            before = self._threads
            asked = before | self._claimed()
            self.rate.spend_rooms(len(asked))
            self._threads = await self._allowed(asked)
            dropped = sorted(before - self._threads)
            await self.presence.connect(self._presentee(), refreshed=True, dropped=dropped)

    async def on_gone(self) -> None:
        if self.presence is not None:
            self.presence.disconnect(self.connection_id)

    def _claimed(self) -> set[str]:
        """Threads of the token's claim, as far as the limit of rooms allows."""
        most = conf().limits.rooms
        return set(sorted(self.principal.threads)[: most if most > 0 else None])

    async def _allowed(self, threads: Iterable[str]) -> set[str]:
        """Those of the threads that the customer may see. Raises `redis.RedisError`."""
        asked = sorted(threads)
        self._expelled.clear()
        answers = await asyncio.gather(*map(self.may_join, asked))
        # Asked first, looked second: a revoke in between was signalled to us.
        return {
            thread_id
            for thread_id, may in zip(asked, answers, strict=True)
            if may and thread_room(thread_id) not in self._expelled
        }

    def _presentee(self) -> Presentee:
        return Presentee(
            connection_id=self.connection_id,
            user_id=self.principal.user_id,
            name=self.principal.name,
            groups=tuple(sorted(self._threads)),
        )
