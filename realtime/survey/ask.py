"""Surveys: asking all instances what they hold, from synchronous code (the admin).

A survey is published to all instances at once; each pushes its answer onto a list that expires. So nothing has to be
kept up to date for it, and an instance that does not answer in time is reported as silent.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import uuid4

import msgspec

from realtime.layers.synchronous import group_send_sync
from realtime.protocol.rooms import CONTROL_GROUP
from realtime.redis.client import key, sync_client
from realtime.survey.messages import (
    About,
    AboutConnection,
    AboutConnections,
    AboutInstances,
    AboutRooms,
    Answer,
    Detail,
    Instance,
    Load,
    Page,
    Rooms,
    Row,
    Survey,
)

logger = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds after which an instance that has not answered is called silent."""
FORGET_SECONDS = 600.0
"""Seconds of silence after which an instance is forgotten."""

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Answered(Generic[S]):
    """The answer of one instance."""

    instance: Instance
    result: S
    seconds: float
    """From publishing the survey to the answer."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[S]):
    """All answers, and the instances that did not answer."""

    answers: list[Answered[S]]
    silent: list[Instance]


def ask(about: About, kind: type[S], instance: str = "") -> Asked[S]:
    """Survey all instances, or one of them. Raises `redis.RedisError`."""
    survey = Survey(id=uuid4().hex, about=about, instance=instance)
    known = _known()
    began = time.monotonic()
    awaited = max(publish(survey), sum(each.silent_since is None for each in known.values()))
    answers: dict[str, Answered[S]] = {}
    while len(answers) < (1 if instance else awaited):
        left = began + PATIENCE - time.monotonic()
        found: Any = left > 0 and sync_client().blpop([survey.reply_to], timeout=left)
        if not found:
            break
        try:
            answer = msgspec.msgpack.decode(found[1], type=Answer)
        except msgspec.DecodeError:  # of another version
            logger.warning("answer not understood", exc_info=True)
            awaited -= 1
            continue
        if isinstance(answer.result, kind):
            result: S = answer.result
            answers[answer.instance.id] = Answered(answer.instance, result, time.monotonic() - began)
    silent = [each for id, each in known.items() if id not in answers and instance in {"", id}]
    return Asked(
        sorted(answers.values(), key=lambda each: (each.instance.host, each.instance.started_at)),
        _note_silence(silent),
    )


def publish(survey: Survey) -> int:
    """Send a survey to all instances; returns how many received it, or 0 when the channel layer cannot tell."""
    message = {"type": "node.question", "question": msgspec.to_builtins(survey)}
    return group_send_sync(CONTROL_GROUP, message)


def _known() -> dict[str, Instance]:
    """The instances that started, or answered, within `REMEMBER_SECONDS`."""
    remembered: Any = sync_client().hgetall(key("instances"))
    known: dict[str, Instance] = {}
    for id, raw in remembered.items():
        with contextlib.suppress(msgspec.DecodeError):  # of another version
            known[id.decode()] = msgspec.json.decode(raw, type=Instance)
    return known


def _note_silence(silent: list[Instance]) -> list[Instance]:
    """Note since when instances are silent, and leave out those that ended in good order or are forgotten."""
    now = time.time()
    remembered: Any = sync_client().hgetall(key("instances")) if silent else {}
    missed = []
    for each in silent:
        since = each.silent_since or now
        if each.id.encode() not in remembered:
            continue
        if now - since > FORGET_SECONDS:
            sync_client().hdel(key("instances"), each.id)
            continue
        noted = msgspec.structs.replace(each, silent_since=since)
        if each.silent_since is None:
            sync_client().hset(key("instances"), each.id, msgspec.json.encode(noted))
        missed.append(noted)
    return missed


# --- What the admin asks ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connections:
    """A page of the connections to all instances."""

    total: int
    before: int
    rows: list[tuple[Instance, Row]]
    silent: list[Instance]
    namespaces: dict[str, int]
    """How many match in each namespace, as far as the instances say."""
    instances: int
    """How many instances answered."""

    @property
    def has_next(self) -> bool:
        """Whether there is a page after this one."""
        return self.before + len(self.rows) < self.total


def connections(about: AboutConnections, instance: str = "") -> Connections:
    """A page of the connections that match. Raises `redis.RedisError`."""
    asked = ask(about, Page, instance)
    rows = sorted(
        ((answer.instance, row) for answer in asked.answers for row in answer.result.rows),
        key=lambda each: each[1].place,
    )
    before = sum(answer.result.before for answer in asked.answers)
    if about.backwards:
        # Each instance answered with those next to the origin; those more than a page away are on earlier pages.
        before += max(len(rows) - about.limit, 0)
        rows = rows[-about.limit :]
    else:
        rows = rows[: about.limit]
    return Connections(
        total=sum(answer.result.total for answer in asked.answers),
        before=before,
        rows=rows,
        silent=asked.silent,
        namespaces=dict(sum((Counter(answer.result.namespaces) for answer in asked.answers), Counter())),
        instances=len(asked.answers),
    )


def connection(connection_id: str) -> tuple[Instance | None, Detail, list[Instance]]:
    """One connection, its instance, and the instances that did not answer. Raises `redis.RedisError`."""
    asked = ask(AboutConnection(connection_id), Detail)
    for answer in asked.answers:
        if answer.result.row is not None:
            return answer.instance, answer.result, asked.silent
    return None, Detail(), asked.silent


def instances() -> Asked[Load]:
    """All instances with their load. Raises `redis.RedisError`."""
    return ask(AboutInstances(), Load)


def rooms(
    about: AboutRooms, first: int, count: int
) -> tuple[int, list[tuple[str, str, int]], list[Instance]]:
    """Returns how many rooms can be listed, `count` of them from `first` on, and the instances that did not answer.

    The largest rooms come first. Listed are those among the largest of any instance; their sizes are then asked of
    all, so that they are right for a room of which an instance has only a few connections. Raises `redis.RedisError`.
    """
    largest = ask(about, Rooms)
    sizes = _sum(largest)
    if len(largest.answers) == 1 or not sizes:
        found = [*sizes.items()]
    else:
        exact = _sum(ask(AboutRooms(named=[*sizes], personal=True), Rooms))
        found = [(room, exact.get(room, size)) for room, size in sizes.items()]
    found.sort(key=lambda each: (-each[1], each[0][1], each[0][0]))
    return len(found), [(*room, size) for room, size in found[first : first + count]], largest.silent


def _sum(asked: Asked[Rooms]) -> dict[tuple[str, str], int]:
    sizes: dict[tuple[str, str], int] = {}
    for answer in asked.answers:
        for namespace, room, size in answer.result.sizes:
            sizes[namespace, room] = sizes.get((namespace, room), 0) + size
    return sizes
