"""Which channel layer is used: the one that the settings name, or our own."""

from __future__ import annotations

import pytest
from channels.layers import InMemoryChannelLayer

from realtime.layers import RoomChannelLayer
from realtime.layers.configured import OWN_LAYER, backend, channel_layer
from realtime.layers.interface import room_layer

IN_MEMORY = "channels.layers.InMemoryChannelLayer"


def test_layer_is_the_one_of_the_settings(settings):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": IN_MEMORY}}
    assert backend() == IN_MEMORY
    assert isinstance(channel_layer(), InMemoryChannelLayer)


@pytest.mark.parametrize("configured", [None, {}, {"other": {"BACKEND": IN_MEMORY}}], ids=str)
def test_without_a_setting_it_is_our_own_and_always_the_same(settings, configured: object):
    if configured is None:
        del settings.CHANNEL_LAYERS
    else:
        settings.CHANNEL_LAYERS = configured
    assert backend() == OWN_LAYER
    assert isinstance(channel_layer(), RoomChannelLayer)
    assert room_layer() is channel_layer()
