"""What the tests of a Cluster share."""

from __future__ import annotations

from realtime.protocol.publication import Draft
from realtime.redis.topology import Cluster as ClusterTopology
from realtime.redis.topology import topology

ROOMS = [f"hub.thread.{number}" for number in range(24)]
ANA_CONNECTS = {"does": "connect", "connection": "c", "user": "ana", "name": "A", "groups": ["attendants"]}


def everywhere(entry: str, *, id: str = "", groups: list[str] = ROOMS) -> Draft:
    rooms = [(group, f"{entry}@".encode()) for group in groups]
    return Draft(rooms=rooms, tail=b"", source="stream", entry=f"{entry:0>20}", id=id)


def shards() -> ClusterTopology:
    found = topology()
    assert isinstance(found, ClusterTopology)
    return found
