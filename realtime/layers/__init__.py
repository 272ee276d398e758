"""Rooms on Redis: a channel layer whose groups have a history, and whose members have a position in it.

Here publications are appended to a room's history, published, fanned out to listeners, and read again after a loss.
The package knows groups and bytes only: which user may enter which room is decided in `realtime.connections`, and what
a bus message means in `realtime.bridge`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realtime.layers.room_layer import RoomChannelLayer as RoomChannelLayer


def __getattr__(name: str) -> Any:
    """`realtime.layers.RoomChannelLayer`, as settings name it: it needs Channels, which a publisher does without."""
    if name != "RoomChannelLayer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from realtime.layers.room_layer import RoomChannelLayer  # noqa: PLC0415

    return RoomChannelLayer
