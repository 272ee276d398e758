"""Appending messages to the stream of the bus from synchronous code, within a bounded time.

A connection that is open is used in the caller's own thread, and cut when the time is over. One is opened in a thread
that may be left behind: resolving a name, TLS, AUTH and asking Sentinels have no bound of their own.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Sequence, Set
from queue import Empty, LifoQueue
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, NoScriptError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from realtime.conf import cached
from realtime.redis.bounded import call, cutting, left, now
from realtime.redis.client import POOL, SOCKET_OPTIONS, key, location, sync_client
from realtime.redis.connection import Argument
from realtime.telemetry.logs import spelled

logger = logging.getLogger(__name__)

_AGAIN = (RedisConnectionError, RedisTimeoutError, ReadOnlyError)

FORBIDDEN_SECONDS = 60.0
"""Seconds after which a script is tried again that Redis did not allow us to run."""


class Direct(NamedTuple):
    """A script that publishes the messages, or appends them to the stream (`realtime.layers.direct`)."""

    script: AsyncScript
    keys: Sequence[str]
    arguments: Sequence[Argument]
    namespaces: Set[str]
    """Those of the rooms: Redis may allow us one and not another."""

    def commands(self, *, is_first: bool = False) -> tuple[Sequence[Argument], Sequence[Argument]]:
        """The script by its hash, and whole, for a Redis that does not know it.

        Args:
            is_first: look whether the user has all rights.
        """
        arguments = [*self.arguments]
        arguments[4] = "1" if is_first else ""
        rest = (len(self.keys), *self.keys, *arguments)
        return ("EVALSHA", self.script.sha, *rest), ("EVAL", self.script.script, *rest)


def append(messages: Sequence[bytes], until: float, direct: Direct | None = None) -> None:
    """Append messages to the stream in their order, all or none of them, by a time of `realtime.redis.bounded.now`.

    Every message carries an id, so one that is appended again does no harm: when the connection was lost, or the server
    is not the primary any more, all of this is tried once more. In a Cluster some of the first messages may have been
    appended when it fails.

    With `direct` that script does it, unless Redis refuses to run it.

    Raises `redis.RedisError`; then it may have been done nevertheless.
    """
    if location().nodes:
        call(lambda: _append_one_by_one(messages), until)
        return
    try:
        _exchange(messages, until, direct, share=0.5)
    except _AGAIN:
        time.sleep(min(random.uniform(0.01, 0.1), left(until)))  # noqa: S311  (many lose Redis together)
        _exchange(messages, until, direct)


def _append_one_by_one(messages: Sequence[bytes]) -> None:
    for message in messages:
        sync_client().xadd(key("stream"), {"message": message})


def _exchange(messages: Sequence[bytes], until: float, direct: Direct | None, share: float = 1.0) -> None:
    """One attempt. An idle connection gets only this share of the time: the network may have forgotten it."""
    commands = [("XADD", key("stream"), "*", "message", message) for message in messages]
    if len(commands) > 1:  # all or none: a refusal must not fall between two messages of a room
        commands = [("MULTI",), *commands, ("EXEC",)]  # type: ignore[list-item]
    pool = connections()
    connection, is_new = pool.take(until)
    try:
        if not is_new:
            until = now() + share * left(until)
        if direct is None or not pool.may_run_scripts or not _run(connection, direct, until, pool):
            _converse(connection, commands, until)
    except BaseException:
        pool.discard(connection)
        raise
    pool.give_back(connection)


def _run(connection: Any, direct: Direct, until: float, pool: _Pool) -> bool:
    """Run the script that publishes the messages. False: Redis refuses it, and they have to use the stream."""
    by_hash, whole = direct.commands(is_first=not direct.namespaces <= pool.published_to)
    try:
        try:
            answer = _converse(connection, [by_hash], until)
        except NoScriptError:
            answer = _converse(connection, [whole], until)
    except ReadOnlyError:
        raise
    except ResponseError as error:
        # What is in Redis' way there is not in the way of the stream, or is found again.
        if isinstance(error, NoPermissionError) or str(error).startswith("ACL failure"):
            logger.warning("messages cannot be published directly", extra={"error": spelled(error)})
            pool.forbid_scripts()
        return False
    if answer is not None:  # else they had to wait in the stream, and no rights were looked at
        pool.published_to |= direct.namespaces
    return True


def _converse(connection: Any, commands: Sequence[Any], until: float) -> Any:
    """Send commands and read their answers; returns the last one. Raises the first error that is among them."""
    packed = connection.pack_commands(commands)
    with cutting(connection.watched, until):
        connection.send_packed_command(packed, check_health=False)
        answers = [_answer(connection, until) for _ in commands]
    last = answers[-1]
    for answer in [*answers, *last] if isinstance(last, list) else answers:  # EXEC's is a list
        if isinstance(answer, RedisError):
            raise answer
    return last


def _answer(connection: Any, until: float) -> Any:
    """The next answer, also if it is an error of the command. Raises what is wrong with the connection."""
    try:
        return connection.read_response()
    except (RedisConnectionError, RedisTimeoutError):
        left(until)  # the watchdog's cut is a time-out
        raise
    except RedisError as error:
        return error


class _Pool:
    """Connections that are open, at most `maxconnections`. redis-py's pools open one in the thread that asks."""

    def __init__(self) -> None:
        most = location().pool_arguments().get("maxconnections", POOL)
        self._free: LifoQueue[Any] = LifoQueue()
        for _ in range(most):
            self._free.put(None)
        self._forbidden_until = 0.0
        self.published_to: Set[str] = frozenset()
        """The namespaces to which scripts have published: Redis allows us that."""

    @property
    def may_run_scripts(self) -> bool:
        """Whether Redis allows us to, as far as we know."""
        return now() >= self._forbidden_until

    def forbid_scripts(self) -> None:
        """Run none for a while: Redis does not allow us to."""
        self._forbidden_until = now() + FORBIDDEN_SECONDS
        self.published_to = frozenset()

    def take(self, until: float) -> tuple[Any, bool]:
        """An open connection, and whether it is new. Raises `redis.RedisError`."""
        while True:
            try:
                connection = self._free.get(timeout=left(until))
            except Empty:
                raise RedisTimeoutError("no connection to Redis became free in time") from None
            if connection is None:
                return self._open(until), True
            if not _has_ended(connection):
                return connection, False
            self.discard(connection)

    def _open(self, until: float) -> Any:
        try:
            return call(_connect, until)
        except BaseException:
            self._free.put(None)
            raise

    def give_back(self, connection: Any) -> None:
        self._free.put(connection)

    def discard(self, connection: Any) -> None:
        connection.disconnect()
        self._free.put(None)

    def close(self) -> None:
        """Close the connections that are not in use."""
        while not self._free.empty():
            if (connection := self._free.get()) is not None:
                connection.disconnect()


def _has_ended(connection: Any) -> bool:
    """Whether the server has closed it, or has said something that nothing had asked for."""
    try:
        return bool(connection.can_read(timeout=0))
    except (RedisError, OSError):
        return True


def _connect() -> Any:
    arguments: Any = {**SOCKET_OPTIONS, **location().sync_arguments(), "retry": Retry(NoBackoff(), 0)}
    connection = arguments.pop("connection_class", redis.Connection)(**arguments)
    try:
        connection.connect()
    except (OSError, UnicodeError) as error:  # a host name that no resolver takes
        raise RedisConnectionError(str(error)) from error
    connection.watched = connection._sock  # noqa: SLF001  (redis-py has no other name for it)
    return connection


@cached(drop=lambda pool: pool.close())
def connections() -> _Pool:
    """The connections of this process."""
    return _Pool()


os.register_at_fork(after_in_child=connections.cache_clear)  # type: ignore[attr-defined]
