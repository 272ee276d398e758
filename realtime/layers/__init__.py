"""Rooms on Redis: a channel layer whose groups have a history, and whose members have a position in it.

Here publications are appended to a room's history, published, fanned out to listeners, and read again after a loss.
The package knows groups and bytes only: which user may enter which room is decided in `realtime.connections`, and what
a bus message means in `realtime.bridge`.
"""

from realtime.layers.room_layer import RoomChannelLayer

__all__ = ["RoomChannelLayer"]
