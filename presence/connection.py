"""What presence adds to a connection: its user is listed, and what it watches is sent to it.

Each class is a mixin in front of `NamespaceConsumer` and uses its hooks only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from presence.namespaces import customers
from presence.operations import Presentee
from presence.store import Member
from presence.tracker import PresenceTracker
from realtime.conf import conf
from realtime.connections.consumer import NamespaceConsumer
from realtime.protocol.namespaces import Presence
from realtime.protocol.principal import Principal
from realtime.protocol.rooms import presence_room, thread_of, thread_room
from realtime.tasks.serial import Action


class ListedConnection(NamespaceConsumer):
    """A connection whose user presence lists, as long as it is open."""

    __slots__ = ("presence",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.presence = PresenceTracker.current(self.namespace)

    @property
    def is_listed(self) -> bool:
        """Whether presence lists this user."""
        raise NotImplementedError

    def listed_in(self) -> tuple[str, ...]:
        """The groups in which the user is listed."""
        raise NotImplementedError

    def presentee(self) -> Presentee:
        """This connection as presence knows it."""
        return Presentee(
            connection_id=self.connection_id,
            user_id=self.principal.user_id,
            name=self.principal.name,
            groups=self.listed_in(),
        )

    async def on_enter(self) -> None:
        await super().on_enter()
        if self.is_listed:
            await self.presence.connect(self.presentee())

    def on_frame(self) -> None:
        super().on_frame()
        if self.is_listed:
            self.presence.seen(self.principal.user_id)

    async def on_gone(self) -> None:
        self.presence.disconnect(self.connection_id)
        await super().on_gone()


class TeamPresence(ListedConnection):
    """The user is listed in the groups of the token, if the role is one of `PRESENCE_ROLES`.

    Every connection gets a `presence:state` for each of its groups, listed or not.
    """

    keeps_presence = Presence.TEAM

    @property
    def is_listed(self) -> bool:
        return self.declared.is_listed(self.principal.role)

    def listed_in(self) -> tuple[str, ...]:
        return self.principal.groups

    async def on_ready(self) -> None:
        await super().on_ready()
        for group in self.principal.groups:
            await self.send_presence_state(group)

    async def on_heartbeat(self) -> None:
        await super().on_heartbeat()
        if self.is_listed:
            self.presence.heartbeat(self.principal.user_id)

    async def on_gap(self, room: str) -> None:
        await super().on_gap(room)
        for group in self.principal.groups:
            if room == presence_room(group):
                await self.send_presence_state(group, is_charged=self.rooms.is_charged)

    async def on_principal_changed(self, previous: Principal) -> None:
        await super().on_principal_changed(previous)
        is_news = (previous.groups, previous.name) != (self.principal.groups, self.principal.name)
        if self.is_listed and is_news:
            await self.presence.connect(self.presentee(), refreshed=True)
        for group in self.principal.groups:
            if group not in previous.groups:
                await self.send_presence_state(group, is_charged=True)

    async def send_presence_state(self, group: str, *, is_charged: bool = False) -> None:
        """Send `presence:state`, which replaces what the client knew of the group, unless it has left the room."""
        room = presence_room(group)
        own, again = [self.namespace], partial(self.send_presence_state, is_charged=is_charged)
        if room in self.rooms and (found := await _snapshot(self, own, room, again)):
            offset, members = found
            state = {"group": group, "members": members, "total": len(members), "offset": offset}
            size = self.write_event("presence:state", state)
            if is_charged:
                self.rate.spend_bytes(size)


class CustomerPresence(ListedConnection):
    """With `CUSTOMER_PRESENCE` the user is listed in threads: in those of the token, and in those joined since.

    Leaving the room of a thread does not count as going away; losing the right does.
    """

    keeps_presence = Presence.CUSTOMERS

    _threads: frozenset[str] = frozenset()
    """Where the customer is seen through this connection."""
    _expelled: frozenset[str] = frozenset()
    """Rooms that were revoked since rights were last asked for."""

    @property
    def is_listed(self) -> bool:
        return conf().customer_presence

    def listed_in(self) -> tuple[str, ...]:
        return tuple(sorted(self._threads))

    async def on_enter(self) -> None:
        if self.is_listed:
            self._threads = await self._allowed(self._claimed())
        await super().on_enter()

    def on_entered(self, room: str) -> None:
        super().on_entered(room)
        thread_id = thread_of(room)
        if self.is_listed and thread_id and thread_id not in self._threads and room in self.rooms:
            self._threads |= {thread_id}
            self.presence.regroup(self.presentee())

    def joined_rooms(self) -> set[str]:
        return super().joined_rooms() | set(map(thread_room, self._threads))

    def on_expelled(self, room: str) -> None:
        super().on_expelled(room)
        self._expelled |= {room}
        thread_id = thread_of(room)
        if thread_id in self._threads:
            self._threads -= {thread_id}
            self.presence.regroup(self.presentee(), dropped=[thread_id])

    async def on_principal_changed(self, previous: Principal) -> None:
        await super().on_principal_changed(previous)
        if self.is_listed:
            asked = self._threads | self._claimed()
            self.rate.spend_rooms(len(asked))
            allowed = await self._allowed(asked)
            dropped = sorted(self._threads - allowed)  # less than before, if a room was revoked meanwhile
            self._threads = allowed
            await self.presence.connect(self.presentee(), refreshed=True, dropped=dropped)

    def _claimed(self) -> set[str]:
        """Threads of the token's claim, as far as the limit of rooms allows."""
        most = conf().limits.rooms
        return set(sorted(self.principal.threads)[: most if most > 0 else None])

    async def _allowed(self, threads: Iterable[str]) -> frozenset[str]:
        """Those of the threads that the customer may see. Raises `redis.RedisError`."""
        asked = sorted(threads)
        self._expelled = frozenset()
        answers = await asyncio.gather(*(self.may_enter(thread_room(thread_id)) for thread_id in asked))
        # The rights are read first and the revokes second: one that came in between was signalled to this connection.
        return frozenset(
            thread_id
            for thread_id, may in zip(asked, answers, strict=True)
            if may and thread_room(thread_id) not in self._expelled
        )


class CustomerStates(NamespaceConsumer):
    """With `CUSTOMER_PRESENCE` the client gets a `customer:state` for each thread it enters."""

    _waiting: frozenset[str] = frozenset()
    """Threads whose state is about to be sent."""

    def on_entered(self, room: str) -> None:
        super().on_entered(room)
        self._send_soon(room)

    async def on_gap(self, room: str) -> None:
        await super().on_gap(room)
        self._send_soon(room)

    def _send_soon(self, room: str) -> None:
        """Several reasons at once make one state."""
        thread_id = thread_of(room)
        if customers() and thread_id and thread_id not in self._waiting:
            self._waiting |= {thread_id}
            self.soon(self.send_customer_state, thread_id)

    async def send_customer_state(self, thread_id: str) -> None:
        """Send `customer:state`, which replaces what the client knew of the thread, unless it has left the room."""
        self._waiting -= {thread_id}
        room = thread_room(thread_id)
        if room in self.rooms and (
            found := await _snapshot(self, customers(), room, self.send_customer_state)
        ):
            offset, members = found
            lines = [{name: member[name] for name in ("user_id", "name", "since")} for member in members]
            self.write_event("customer:state", {"thread_id": thread_id, "customers": lines, "offset": offset})


async def _snapshot(
    connection: NamespaceConsumer, namespaces: Iterable[str], room: str, again: Action
) -> tuple[str, list[Member]] | None:
    """The connection's position in a room, and the members there; None: not now, `again` is called in a second."""
    _, _, group = room.partition(":")
    if not connection.outlet.is_behind:
        with contextlib.suppress(RedisError, TimeoutError):
            # In this order: a change that comes while the list is read may be in it or not, and has a higher offset.
            offset = str(connection.rooms[room])
            trackers = [PresenceTracker.current(namespace) for namespace in namespaces]
            members = [member for tracker in trackers for member in await tracker.snapshot(group)]
            return (offset, members) if room in connection.rooms else None  # expelled meanwhile
    # A state replaces what the client knows: the one that is sent once the client has read the rest is enough.
    connection.after(1.0, f"state {room}", again, group)
    return None
