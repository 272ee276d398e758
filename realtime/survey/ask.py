"""Asking the socket processes what they hold, from synchronous code: the web side's half of `realtime.survey.messages`.

A question is published to all processes at once; each pushes its answer onto a list that expires. So asking costs
nothing where nobody asks, and who does not answer in time is named and not waited for any longer.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import uuid4

import msgspec

from realtime.layers.interface import room_layer
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
    Question,
    Rooms,
    Row,
)

logger = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds until who has not answered is called silent."""
FORGET_SECONDS = 600.0
"""A process that was silent for so long is not missed any more."""

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Answered(Generic[S]):
    """What one process said."""

    instance: Instance
    said: S
    seconds: float
    """From the question, through Redis and the process, to the answer."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[S]):
    """Everything that was said, and who said nothing."""

    answers: list[Answered[S]]
    silent: list[Instance]


def ask(about: About, kind: type[S], instance: str = "") -> Asked[S]:
    """Ask all processes, or one of them. Raises `redis.RedisError`."""
    question = Question(id=uuid4().hex, about=about, instance=instance)
    known = _known()
    began = time.monotonic()
    awaited = max(publish(question), sum(each.silent_since is None for each in known.values()))
    answers: dict[str, Answered[S]] = {}
    while len(answers) < (1 if instance else awaited):
        left = began + PATIENCE - time.monotonic()
        found: Any = left > 0 and sync_client().blpop([question.reply_to], timeout=left)
        if not found:
            break
        try:
            answer = msgspec.msgpack.decode(found[1], type=Answer)
        except msgspec.DecodeError:  # of another version
            logger.warning("answer not understood", exc_info=True)
            awaited -= 1
            continue
        if isinstance(answer.said, kind):
            said: S = answer.said
            answers[answer.instance.id] = Answered(answer.instance, said, time.monotonic() - began)
    silent = [each for id, each in known.items() if id not in answers and instance in {"", id}]
    return Asked(
        sorted(answers.values(), key=lambda each: (each.instance.host, each.instance.started_at)),
        _remember(silent),
    )


def publish(question: Question) -> int:
    """Send a question to all instances; returns how many received it, or 0 when the channel layer does not know."""
    message = {"type": "node.question", "question": msgspec.to_builtins(question)}
    return room_layer().group_send_sync(CONTROL_GROUP, message)


def _known() -> dict[str, Instance]:
    """The processes that started, or answered, lately."""
    remembered: Any = sync_client().hgetall(key("instances"))
    known: dict[str, Instance] = {}
    for node, raw in remembered.items():
        with contextlib.suppress(msgspec.DecodeError):  # of another version
            known[node.decode()] = msgspec.json.decode(raw, type=Instance)
    return known


def _remember(silent: list[Instance]) -> list[Instance]:
    """Note since when they are silent; whom to miss. Who left in good order meanwhile, or long ago, is not missed."""
    now = time.time()
    here: Mapping[bytes, bytes] = sync_client().hgetall(key("instances")) if silent else {}  # type: ignore[assignment]
    missed = []
    for each in silent:
        noted = msgspec.structs.replace(each, silent_since=each.silent_since or now)
        if each.host and each.id.encode() not in here:
            continue
        if now - (noted.silent_since or now) > FORGET_SECONDS:
            sync_client().hdel(key("instances"), each.id)
            continue
        if each.host and each.silent_since is None:
            sync_client().hset(key("instances"), each.id, msgspec.json.encode(noted))
        missed.append(noted)
    return missed


# --- Put together ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connections:
    """A page of the connections to all processes."""

    total: int
    before: int
    rows: list[tuple[Instance, Row]]
    silent: list[Instance]

    @property
    def has_next(self) -> bool:
        """Whether there are more behind it."""
        return self.before + len(self.rows) < self.total


def connections(about: AboutConnections, instance: str = "") -> Connections:
    """A page of the connections that fit. Raises `redis.RedisError`."""
    asked = ask(about, Page, instance)
    rows = sorted(
        ((answer.instance, row) for answer in asked.answers for row in answer.said.rows),
        key=lambda each: each[1].place,
    )
    before = sum(answer.said.before for answer in asked.answers)
    if about.backwards:
        # Each process told those next to the origin; those farther away than a page belong to an earlier one.
        before += max(len(rows) - about.limit, 0)
        rows = rows[-about.limit :]
    else:
        rows = rows[: about.limit]
    return Connections(sum(answer.said.total for answer in asked.answers), before, rows, asked.silent)


def connection(connection_id: str) -> tuple[Instance | None, Detail, list[Instance]]:
    """One connection with the process that has it, and who said nothing. Raises `redis.RedisError`."""
    asked = ask(AboutConnection(connection_id), Detail)
    for answer in asked.answers:
        if answer.said.row is not None:
            return answer.instance, answer.said, asked.silent
    return None, Detail(), asked.silent


def instances() -> Asked[Load]:
    """All processes with their load. Raises `redis.RedisError`."""
    return ask(AboutInstances(), Load)


def rooms(
    about: AboutRooms, first: int, count: int
) -> tuple[int, list[tuple[str, str, int]], list[Instance]]:
    """So many rooms from the `first` on, the largest first: how many can be listed, the rooms, and who said nothing.

    Listed are those among the largest of any process; their sizes are then asked of all, so that they are right for a
    room of which a process has only a few. Raises `redis.RedisError`.
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
        for namespace, room, size in answer.said.sizes:
            sizes[namespace, room] = sizes.get((namespace, room), 0) + size
    return sizes
