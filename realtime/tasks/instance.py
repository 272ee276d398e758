"""The one id of this instance: logs, metrics, the admin and Redis know it by this name.

An instance is an operating-system process. An event loop beside its main one (`async_to_sync` makes such loops) counts
as another instance, because nothing is shared between loops.
"""

from __future__ import annotations

from uuid import uuid4

from realtime.tasks.per_loop import PerLoop


class _Instance:
    def __init__(self) -> None:
        self.id = uuid4().hex
        self.named: set[str] = set()


_instance: PerLoop[_Instance] = PerLoop(_Instance, lambda _: None)


def id_for(part: str) -> str:
    """The id under which a part of this instance (its layer, its lease) is known to other instances.

    It is that of the instance. A second part of the same kind in one loop gets an id of its own: other instances must
    not take one for the other.
    """
    instance = _instance()
    if part in instance.named:
        return uuid4().hex
    instance.named.add(part)
    return instance.id
