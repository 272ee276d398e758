"""The channel layer that the settings name: our own one, unless they name another.

Channels is imported at the first use: a publisher has bus handlers in its catalogue, and never runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

OWN_LAYER = "realtime.layers.RoomChannelLayer"
DEFAULT = "default"


def backend(alias: str = DEFAULT) -> str:
    """The dotted path of the channel layer of that name. Raises `ImproperlyConfigured` when the setting is no dict."""
    layers = _mapping(getattr(settings, "CHANNEL_LAYERS", {}), "CHANNEL_LAYERS")
    layer = _mapping(layers.get(alias, {}), f"CHANNEL_LAYERS[{alias!r}]")
    return str(layer.get("BACKEND", OWN_LAYER))


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ImproperlyConfigured(f"{name}: expected a dict, got {type(value).__name__}")
    return value


def channel_layer(alias: str = DEFAULT) -> Any:
    """The channel layer of that name."""
    from channels.layers import get_channel_layer  # noqa: PLC0415

    return get_channel_layer(alias) or _own_layer()


@lru_cache(maxsize=1)
def _own_layer() -> Any:
    from realtime.layers.room_layer import RoomChannelLayer  # noqa: PLC0415

    return RoomChannelLayer()
