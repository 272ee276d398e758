"""Ghosts: users whom the database has as present, and whom Redis does not know."""

from __future__ import annotations

import logging
import time
from typing import Any

from django.db.models import QuerySet

from presence import store
from presence.models import PresenceRecord, Status
from presence.namespaces import teams
from presence.recorder.history import database
from realtime.conf import conf

logger = logging.getLogger(__name__)

BATCH = 500
"""Users who are taken offline by one call."""


class Ghosts:
    """Has ghosts announced offline.

    A Redis that was wiped announces nothing about users who never came back: they would stay online for ever. A user
    whom it has not known for longer than a dead instance and the grace period could explain is announced offline there,
    and the announcement comes back over the stream.
    """

    def __init__(self) -> None:
        self._next_look = self._looked_at = 0.0
        self._unknown: dict[str, dict[str, float]] = {}
        """By namespace: users whom Redis does not know, and since when."""

    def forget(self) -> None:
        """Redis was away, and no instance could register: that a user was unknown before proves nothing."""
        self._unknown.clear()

    def look(self) -> None:
        """Compare the database with Redis, if it is time. Raises `redis.RedisError` or `django.db.Error`."""
        now = time.monotonic()
        if now < self._next_look:
            return
        if now - self._looked_at > _patience() / 2:
            self.forget()  # this process stood still: the user may have been known meanwhile
        self._next_look, self._looked_at = now + conf().batch_interval, now
        for namespace in teams():
            self._look(namespace, now)

    def _look(self, namespace: str, now: float) -> None:
        records = PresenceRecord.objects.using(database()).filter(namespace=namespace)
        present = records.filter(status__in=(Status.ONLINE, Status.AWAY))
        user_ids = list(present.values_list("user_id", flat=True))
        statuses = store.statuses_sync(namespace, user_ids)
        before = self._unknown.get(namespace, {})
        unknown = {
            user: before.get(user, now) for user, status in statuses.items() if status == Status.OFFLINE
        }
        ghosts = [user for user, since in unknown.items() if now - since > _patience()]
        for start in range(0, len(ghosts), BATCH):
            _announce_offline(namespace, present.filter(user_id__in=ghosts[start : start + BATCH]))
        self._unknown[namespace] = {user: since for user, since in unknown.items() if user not in ghosts}


def _patience() -> float:
    return conf().node_lease + conf().grace_period


def _announce_offline(namespace: str, records: QuerySet[PresenceRecord]) -> None:
    ghosts = [_forget(record) for record in records.prefetch_related("groups")]
    store.apply_sync(namespace, ghosts)
    logger.warning("unknown to Redis, taken offline", extra={"namespace": namespace, "users": len(ghosts)})


def _forget(record: PresenceRecord) -> dict[str, Any]:
    return {
        "does": "forget",
        "user": record.user_id,
        "name": record.name,
        "groups": [group.name for group in record.groups.all()],
        "status": record.status,
    }
