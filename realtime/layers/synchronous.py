"""Sending to groups from synchronous code, which needs Channels only for other layers than the project's own."""

from __future__ import annotations

from typing import Any

from asgiref.sync import async_to_sync

from realtime.layers import history
from realtime.layers.configured import OWN_LAYER, backend, channel_layer
from realtime.redis.client import publish_sync


def group_send_sync(group: str, message: dict[str, Any]) -> int:
    """Send a message to a group.

    Returns the number of instances that receive it, or 0 when the layer does not know. Raises `redis.RedisError`.
    """
    if backend() == OWN_LAYER:
        return publish_sync(*history.group_message(group, message))
    async_to_sync(channel_layer().group_send)(group, message)
    return 0
