"""Direct publishing: a backbone appends a message to its rooms itself, if nothing waits in the stream before it.

A message in the stream wakes the bridge, only to be appended to its rooms by a script. Here the backbone's own command
is that script (`direct.lua`). It looks whether the bridge has delivered all that the stream holds; if not, it adds the
message to the stream, and so it never overtakes another one. Redis runs one script at a time, so nothing comes between
looking and appending. The message's id makes it one message, whichever of the two ways it took, also when it is sent
again.

Only a bridge that leads knows the settings of the histories, and whether the backbone's catalogue is that of the
servers: it writes both down (`allow`). A backbone with another catalogue might choose other rooms, and uses the stream;
so does every message that the bridge has to handle (`on_bus`), and so do all messages in a Cluster, where a script
cannot use the stream's key and those of the rooms together.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from realtime.conf import cached, conf
from realtime.layers.configured import OWN_LAYER, backend
from realtime.layers.history import APPEND, Lease, append_arguments, append_settings
from realtime.protocol.bus_message import BusMessage, parse
from realtime.protocol.catalogue import ServerEvent, catalogue
from realtime.protocol.namespaces import namespaces
from realtime.redis.appending import Direct
from realtime.redis.client import key, run, script
from realtime.redis.connection import Argument
from realtime.redis.schema_version import SCHEMA_VERSION
from realtime.redis.topology import topology

MOST_ROOMS = 1000
"""Rooms of messages that are published together: Redis does nothing else meanwhile."""

_script = script(APPEND.with_name("direct.lua").read_bytes() + APPEND.read_bytes())


_allow = script(
    b"""
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call(ARGV[2], KEYS[2], unpack(ARGV, 3))
    """,
)


async def allow(lease: Lease) -> None:
    """Let backbones with this catalogue publish directly, if this bridge still leads. Raises `redis.RedisError`.

    A bridge that was suspended meanwhile must not put its catalogue in place of that of the bridge that leads now.
    """
    if not topology().spans_keys:
        return
    lease_key, holder = lease
    await run(_allow, [lease_key, key("cursors")], [holder, *_permission()])


def _permission() -> list[Argument]:
    if backend() != OWN_LAYER:  # rooms are groups of another layer, which nothing but the bridge sends to
        return ["HDEL", "catalogue"]
    names = ("size", "ttl", "bytes", "room", "marker")
    settings = [word for pair in zip(names, append_settings(), strict=True) for word in pair]
    return ["HSET", "catalogue", fingerprint(), *settings]


def direct(messages: Sequence[bytes]) -> Direct | None:
    """The script that publishes these messages directly, with its keys and arguments.

    None if they have to use the stream. The messages are valid.
    """
    if not conf().publish_directly or not topology().spans_keys:
        return None
    try:
        parsed = [parse(message) for message in messages]
    except Exception:  # it waited in an outbox and is not valid any more, or a product's code fails
        return None
    if not all(map(_can_be_direct, parsed)) or sum(len(message.targets) for message in parsed) > MOST_ROOMS:
        return None
    drafts = [message.draft(traceparent=message.traceparent or "") for message in parsed]
    keys, arguments = append_arguments(topology(), drafts, whole=True)
    arguments[:5] = [fingerprint(), len(messages), key("cursors"), key("stream"), ""]
    names = {namespace for message in parsed for namespace, _ in message.targets}
    return Direct(_script, keys, [*arguments, *messages], names)


def _can_be_direct(message: BusMessage) -> bool:
    return bool(message.targets and message.id) and message.event not in catalogue().bus_handlers


def _described(event: ServerEvent) -> Sequence[object]:
    fields = event.payload.__struct_fields__
    return event.bus, fields, sorted(event.namespaces), sorted(event.default_namespaces)


@cached()
def fingerprint() -> str:
    """What decides whether a message is valid and where it goes, as far as names and the limit of its size tell."""
    events = catalogue()
    found = [
        SCHEMA_VERSION,
        conf().limits.bus_bytes,
        sorted((each.name, [kind.name for kind in each.kinds]) for each in namespaces().values()),
        sorted(events.bus_handlers.keys() & events.server.keys()),
        sorted((name, *_described(event)) for name, event in events.server.items()),
    ]
    return sha256(repr(found).encode()).hexdigest()[:16]
