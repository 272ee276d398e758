"""Rooms on Redis: a channel layer whose groups have a history, and whose members have a position in it.

It appends, publishes, hands out and catches up. It knows groups and bytes: which user may enter which room is decided
in `realtime.connections`, and what a bus message means in `realtime.bridge`.
"""

from realtime.layers.room_layer import RoomChannelLayer

__all__ = ["RoomChannelLayer"]
