"""What this instance answers when an operator surveys all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
from redis.exceptions import RedisError

from realtime.connections.index import ConnectionIndex
from realtime.layers import history
from realtime.protocol.rooms import group_name
from realtime.redis.client import client, key
from realtime.survey import load, results
from realtime.survey.messages import (
    EXPIRE_SECONDS,
    REMEMBER_SECONDS,
    STALL_SECONDS,
    AboutConnection,
    AboutConnections,
    AboutInstances,
    AboutRooms,
    Answer,
    Detail,
    InRoom,
    Instance,
    Result,
    Survey,
)
from realtime.tasks.supervision import report
from realtime.tasks.task_set import TaskSet
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)


class SurveyResponder:
    """Answers surveys, each in a task of its own, and keeps the name of this instance in Redis."""

    def __init__(self, index: ConnectionIndex, instance: Callable[[], Instance]) -> None:
        self._index = index
        self._instance = instance
        self._meter = load.Meter()
        self._answering = TaskSet()

    def on_survey(self, survey: Survey) -> None:
        """Answer, if the survey is meant for this instance."""
        if survey.instance in {"", self._instance().id}:
            self._answering.spawn(self._answer(survey))

    async def stop(self) -> None:
        """Answer no more."""
        self.abort()
        await self._answering.ended()

    def abort(self) -> None:
        """`stop` without waiting: the event loop ends."""
        self._answering.cancel()

    async def register(self) -> None:
        """Name this instance in Redis: a survey reports named instances that do not answer.

        Raises `redis.RedisError`.
        """
        async with client().pipeline(transaction=False) as pipeline:
            self._register(pipeline)
            await pipeline.execute()

    async def unregister(self) -> None:
        """Take the name back: this instance ends in good order. Raises `redis.RedisError`."""
        await client().hdel(key("instances"), self._instance().id)

    def _register(self, pipeline: Any) -> None:
        instance = self._instance()
        pipeline.hset(key("instances"), instance.id, msgspec.json.encode(instance))
        pipeline.expire(key("instances"), REMEMBER_SECONDS)

    async def _answer(self, survey: Survey) -> None:
        try:
            answer = Answer(self._instance(), await self._result(survey))
            async with client().pipeline(transaction=False) as pipeline:
                pipeline.rpush(survey.reply_to, msgspec.msgpack.encode(answer, enc_hook=str))
                pipeline.expire(survey.reply_to, EXPIRE_SECONDS)
                self._register(pipeline)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            extra = {"instance": self._instance().id, "error": spelled(error)}
            logger.warning("survey not answered", extra=extra)
        except Exception:
            report("answer")

    async def _result(self, survey: Survey) -> Result:
        connections = tuple(self._index.connections.values())
        match survey.about:
            case AboutInstances():
                stall = await _measure_stall()
                return await load.load(connections, cpu=self._meter.read(), stall=stall)
            case AboutConnections():
                return await results.page(survey.about, connections)
            case AboutConnection():
                return await self._detail(survey.about.connection_id)
            case AboutRooms():
                return await results.rooms(survey.about, connections)

    async def _detail(self, connection_id: str) -> Detail:
        if (connection := self._index.connections.get(connection_id)) is None:
            return Detail()
        positions = dict(connection.rooms)
        groups = {room: group_name(connection.user[0], room) for room in positions}
        ends = await history.ends(groups.values())
        return Detail(
            row=results.row(connection),
            groups=[*connection.principal.groups],
            expires_at=connection.principal.expires_at,
            rooms=[InRoom(room, position, ends[groups[room]]) for room, position in positions.items()],
        )


async def _measure_stall() -> float:
    """By how many seconds the event loop is late."""
    before = asyncio.get_running_loop().time()
    await asyncio.sleep(STALL_SECONDS)
    return max(asyncio.get_running_loop().time() - before - STALL_SECONDS, 0.0)
