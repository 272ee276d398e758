"""The channel layer that the settings name: our own one, unless they name another.

Channels is imported at the first use: a publisher has bus handlers in its catalogue, and never runs them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from django.conf import settings

from realtime.layers import history
from realtime.redis.client import publish_sync

OWN_LAYER = "realtime.layers.RoomChannelLayer"
DEFAULT = "default"


def backend(alias: str = DEFAULT) -> str:
    """The dotted path of the channel layer of that name."""
    configured = getattr(settings, "CHANNEL_LAYERS", {}).get(alias, {})
    return str(configured.get("BACKEND", OWN_LAYER))


def channel_layer(alias: str = DEFAULT) -> Any:
    """The channel layer of that name."""
    from channels.layers import get_channel_layer  # noqa: PLC0415

    return get_channel_layer(alias) or _own_layer()


@lru_cache(maxsize=1)
def _own_layer() -> Any:
    from realtime.layers.room_layer import RoomChannelLayer  # noqa: PLC0415

    return RoomChannelLayer()


def group_send_sync(group: str, message: dict[str, Any]) -> int:
    """Send a message to a group from synchronous code, which needs Channels for other layers than ours only.

    Returns the number of instances that receive it, or 0 when the layer does not know. Raises `redis.RedisError`.
    """
    if backend() == OWN_LAYER:
        return publish_sync(*history.group_message(group, message))
    from realtime.layers.interface import room_layer  # noqa: PLC0415

    return room_layer().group_send_sync(group, message)
