"""A group as this process sees it, and handing something to its members."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator

from realtime import roomlog
from realtime.delivery import Outlet
from realtime.rooms import room_of_group

logger = logging.getLogger(__name__)

SLICE = 200
"""Deliveries between two looks at everything else that the loop has to do."""


class Group:
    """Its members here, and where they stand."""

    __slots__ = (
        "accepted",
        "channel",
        "listening",
        "lock",
        "members",
        "name",
        "newest",
        "position",
        "ready",
        "repair",
        "room",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.room = room_of_group(name)
        self.channel = roomlog.channel(name)
        self.members: dict[str, Outlet] = {}
        self.listening: dict[str, Outlet] = {}
        """Members that get publications."""
        self.position = 0
        """Everything up to here has been handed on; 0: not known yet."""
        self.accepted = 0
        """Everything up to here has been handed on or is about to be."""
        self.newest = 0
        """The newest position seen; above `position`, something is missing."""
        self.lock = asyncio.Lock()
        """Held while something is handed on: a large room takes several turns of the loop."""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.repair: asyncio.Task[None] | None = None


Give = Callable[[Outlet], None]
"""Hands something to one outlet."""


def to_members(group: Group, give: Give) -> Iterator[Awaitable[None]]:
    """To every member here. A large group is left to be awaited."""
    if len(group.members) > SLICE:
        yield to_each(group.members, give)
    else:
        to_all(tuple(group.members.items()), give)


async def to_each(members: dict[str, Outlet], give: Give) -> None:
    """In slices, so that pings and handshakes get their turn; who has left meanwhile is left out."""
    everybody = tuple(members.items())
    for start in range(0, len(everybody), SLICE):
        to_all([member for member in everybody[start : start + SLICE] if member[0] in members], give)
        await asyncio.sleep(0)


def to_all(members: Iterable[tuple[str, Outlet]], give: Give) -> None:
    """One outlet's trouble is not another's."""
    for channel, outlet in members:
        try:
            give(outlet)
        except Exception:
            logger.exception("outlet failed", extra={"channel": channel})
