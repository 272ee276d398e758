"""What can be published directly, and which bridge allows it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from django.test import override_settings

from realtime.layers import direct as module
from realtime.layers.configured import OWN_LAYER
from realtime.protocol.catalogue import catalogue
from realtime.redis.client import client, key
from realtime.redis.lease import Lease

pytestmark = pytest.mark.usefixtures("process", "_directly")


@pytest.mark.parametrize("part", ["namespaces", "events", "handlers"])
def test_fingerprint_is_of_what_decides_the_rooms(part: str, settings, monkeypatch: pytest.MonkeyPatch):
    own = module.fingerprint()
    match part:
        case "namespaces":
            settings.REALTIME = {**settings.REALTIME, "NAMESPACES": ["realtime.namespaces.hub.HUB"]}
        case "events":
            event = catalogue().server["thread:message"]
            monkeypatch.setitem(catalogue().server, "ticket:moved", event)
        case _:
            monkeypatch.setitem(catalogue().bus_handlers, "thread:message", [])
    module.fingerprint.cache_clear()
    assert module.fingerprint() != own
    module.fingerprint.cache_clear()


async def test_other_channel_layer_keeps_the_bridge(settings):
    lease = Lease("bridge", 60)
    assert await lease.hold()
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}):
        await module.allow(lease.fence)
    assert await client().hget(key("cursors"), "catalogue") is None
    await module.allow(lease.fence)
    assert await client().hget(key("cursors"), "catalogue") is not None


@pytest.mark.parametrize("layer", [OWN_LAYER, "channels.layers.InMemoryChannelLayer"])
async def test_bridge_that_was_suspended_changes_nothing_of_what_its_successor_allows(layer: str):
    """They may be of different versions, with different catalogues."""
    old, new = Lease("bridge", 60), Lease("bridge", 60)
    assert await old.hold()
    await old.release()
    assert await new.hold()
    await client().hset(key("cursors"), mapping={"catalogue": "that of the new one", "size": 7})
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": layer}}):
        await module.allow(old.fence)
    assert await client().hmget(key("cursors"), "catalogue", "size") == [b"that of the new one", b"7"]


GOOD = b'{"event": "thread:message", "data": {"thread_id": 1, "message_id": 1}, "id": 1}'


@pytest.mark.parametrize(
    "message",
    [b"no JSON", b'{"event": "thread:message", "data": {"thread_id": 1, "message_id": 1}}'],
    ids=["not valid any more", "without an id"],
)
def test_one_message_that_cannot_be_direct_sends_all_by_the_stream(message: bytes):
    assert module.direct([GOOD]) is not None
    assert module.direct([GOOD, message]) is None


def test_messages_to_many_rooms_use_the_stream_together():
    """Redis would serve nothing else for as long as the script runs; the bridge sends them in parts."""
    rooms = [f"user:{number}" for number in range(500)]
    message = {"event": "thread:message", "data": {"thread_id": 1, "message_id": 1}, "id": 1, "rooms": rooms}
    wide = json.dumps({**message, "namespaces": ["hub"]}).encode()
    assert module.direct([wide, wide]) is not None
    assert module.direct([wide, wide, wide]) is None


def test_code_of_a_product_that_fails_leaves_the_message_to_the_bridge(monkeypatch: pytest.MonkeyPatch):
    def broken(payload: Any) -> list[str]:
        raise KeyError(payload.thread_id)

    event = dataclasses.replace(catalogue().server["thread:message"], rooms=broken)
    monkeypatch.setitem(catalogue().server, "thread:message", event)
    assert module.direct([GOOD]) is None


def test_cluster_uses_the_stream(settings):
    with override_settings(REALTIME={**settings.REALTIME, "REDIS_URL": "redis+cluster://a:1,b:2"}):
        assert module.direct([GOOD]) is None
