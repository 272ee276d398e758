"""Pipelined connections to Redis: everything that is sent in one turn of the loop is one write, answered in order.

They carry the commands of every message and every handshake: a command over redis-py's client costs several times as
much as the delivery of a message.

A command that has no answer when its connection is lost may have been done or not: it fails, and is not sent again
here. A command that was not written yet, or that Redis says it has not done (MOVED, ASK, TRYAGAIN), is sent again. Only
a script does not follow an ASK: it may name its keys by their first part, which never exists, and then a room of which
nothing has been moved yet would begin anew at the other server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from redis import exceptions
from redis.commands.core import AsyncScript
from redis.exceptions import AskError, MovedError, RedisError, TryAgainError

from realtime.redis.connection import Argument, Session, pack, patience, refuse
from realtime.redis.topology import Server, topology
from realtime.tasks.per_loop import PerLoop

T = TypeVar("T")

ATTEMPTS = 16
"""How often a command is sent: servers that redirect it to each other do not agree on its slot (yet)."""
COMMAND_BYTES = 500
"""Roughly the memory that a command takes besides its text, until it is answered."""
TRY_AGAIN_SECONDS = 0.05
"""Pause before a command is repeated whose keys are on two servers, because their slot is being moved."""


@dataclass(slots=True)
class Command:
    """A command, and the future that gets its answer."""

    packed: bytes
    future: asyncio.Future[Any]
    whole: Callable[[], bytes] | None = None
    """For a script that is named by its hash: packs the command with the script itself."""
    attempts: int = 0

    @property
    def size(self) -> int:
        """Bytes that it takes until it is answered."""
        return len(self.packed) + COMMAND_BYTES


class Pipes:
    """A pipelined connection to each server, opened when something is sent to it.

    With `once` all of them are closed when one is lost, also when no command was on its way: Redis may have lost what
    it had acknowledged before.
    """

    def __init__(self, *, once: bool = False) -> None:
        self._on_loss = self.close if once else lambda: None
        self.topology = topology()
        """Which server has which key."""
        self.topology.on_change.add(self._follow)
        self._pipes: dict[Server, Pipe] = {}
        self.is_closed = False

    @property
    def size(self) -> int:
        """Bytes that commands without an answer take."""
        return sum([pipe.size for pipe in self._pipes.values()])

    def to(self, key: str | bytes) -> Pipe:
        """The pipe to the server of a key or channel."""
        return self._at(self.topology.owner(key))

    def publish(self, channel: bytes, payload: bytes) -> asyncio.Future[Any]:
        """Publish to all connections that have subscribed to the channel."""
        return self.to(channel).send(self.topology.publish_command, channel, payload)

    async def listeners(self, channel: bytes) -> int:
        """How many connections have subscribed to a channel. Raises `redis.RedisError`."""
        count: int = (await self.to(channel).send("PUBSUB", self.topology.count_command, channel))[1]
        return count

    async def answer(self) -> None:
        """Return when all servers have answered. Raises `redis.RedisError` when one of them does not."""
        await asyncio.gather(*[self._at(server).send("PING") for server in self.topology.servers()])

    def flush(self) -> None:
        """Write at once, not at the end of this turn of the loop."""
        for pipe in self._pipes.values():
            pipe.flush()

    def close(self) -> None:
        """Close the connections; commands without an answer fail, and so does what is sent from now on."""
        self.is_closed = True
        self.topology.on_change.discard(self._follow)
        for pipe in self._pipes.values():
            pipe.close()

    def _follow(self) -> None:
        """Close the connections to servers that have left."""
        for server in self._pipes.keys() - self.topology.servers():
            if not self._pipes[server].size:
                self._pipes.pop(server).close()

    def _at(self, server: Server) -> Pipe:
        pipe = self._pipes.get(server)
        if pipe is None:
            pipe = self._pipes[server] = Pipe(server, self.topology.refresh, self._redirect, self._on_loss)
            if self.is_closed:
                pipe.close()
        return pipe

    def _redirect(self, error: AskError, command: Command) -> None:
        """Follow a server that does not serve the key (any more) and says which one does."""
        pipe = self._at((error.host, error.port))
        if not isinstance(error, MovedError):
            pipe.send("ASKING")
        pipe.resend(command)


pipes: PerLoop[Pipes] = PerLoop(Pipes, Pipes.close)
"""The connections that an event loop shares. A command that waits in Redis (BLOCK) needs `Pipes()` of its own."""


def _raise(error: AskError, command: Command) -> None:
    refuse(command.future, error)


class Pipe(Session):
    """The pipelined connection to one server. `redirect` takes a command that belongs to another one."""

    name = "pipe"

    def __init__(
        self,
        server: Server = None,
        on_trouble: Callable[[], None] = lambda: None,
        redirect: Callable[[AskError, Command], None] = _raise,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(server, on_trouble, patience(), lambda: bool(self._written))
        self._redirect = redirect
        self._on_loss = on_loss
        self._unwritten: list[Command] = []
        self._written: deque[Command] = deque()
        """Commands that the open connection has not answered yet."""
        self.size = 0
        """Bytes that commands without an answer take."""

    def send(self, *command: Argument) -> asyncio.Future[Any]:
        """Send a command. The future has its answer, or a `redis.RedisError`: then it may have been done or not."""
        return self._send(pack(*command))

    def run(
        self, script: AsyncScript, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> asyncio.Future[Any]:
        """Send a Lua script by its hash; when Redis does not know it (any more), it is sent whole."""
        return self.prepare(script, keys, arguments)()

    def prepare(
        self, script: AsyncScript, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> Callable[[], asyncio.Future[Any]]:
        """`run`, packed now, and sent when what this returns is called, once."""
        rest = (len(keys), *keys, *arguments)
        packed = pack("EVALSHA", script.sha, *rest)
        return lambda: self._send(packed, lambda: pack("EVAL", script.script, *rest))

    def _send(self, packed: bytes, whole: Callable[[], bytes] | None = None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self.resend(Command(packed, future, whole))
        return future

    def resend(self, command: Command) -> None:
        """Send a command whose future exists already."""
        if self._is_closed:
            refuse(command.future, exceptions.ConnectionError("closed"))
            return
        self.size += command.size
        self._unwritten.append(command)
        self.schedule()

    def outgoing(self) -> bytes:
        commands, self._unwritten = self._unwritten, []
        self._written.extend(commands)
        return b"".join([command.packed for command in commands])

    def close(self) -> None:
        """Close the connection; commands without an answer fail, and so does what is sent from now on."""
        super().close()
        for command in (*self._written, *self._unwritten):
            refuse(command.future, exceptions.ConnectionError("closed"))

    def on_failure(self, error: BaseException, lasted: float | None) -> None:
        failed: Sequence[Command]
        if lasted is None:
            failed, self._unwritten = self._unwritten, []
        else:
            failed, self._written = self._written, deque()
            self._on_loss()
        for command in failed:
            self.size -= command.size
            refuse(command.future, error)
        if self._unwritten:
            self.schedule()

    def on_replies(self, next_reply: Callable[[], Any]) -> None:
        stale: RedisError | None = None
        while (answer := next_reply()) is not False:
            command = self._written.popleft()
            self.size -= command.size
            if isinstance(answer, RedisError):
                self._on_refusal(command, answer)
                if isinstance(answer, exceptions.ReadOnlyError | exceptions.BusyLoadingError):
                    stale = answer
            elif not command.future.done():
                command.future.set_result(answer)
        if stale is not None:
            raise stale  # no longer, or not yet, the server that we want

    def _on_refusal(self, command: Command, error: RedisError) -> None:
        if isinstance(error, AskError | exceptions.ClusterDownError):
            self._on_trouble()
        if isinstance(error, MovedError) or (isinstance(error, AskError) and command.whole is None):
            self._once_more(command, error, lambda command: self._redirect(error, command))
        elif isinstance(error, exceptions.NoScriptError) and command.whole is not None:
            command.packed = command.whole()
            self._once_more(command, error, self.resend)
        elif isinstance(error, TryAgainError):
            self._once_more(
                command, error, lambda command: self._loop.call_later(TRY_AGAIN_SECONDS, self.resend, command)
            )
        else:
            refuse(command.future, error)

    @staticmethod
    def _once_more(command: Command, error: RedisError, resend: Callable[[Command], object]) -> None:
        """Redis has not done the command: repeat it, unless that has been tried `ATTEMPTS` times."""
        command.attempts += 1
        if command.attempts > ATTEMPTS:
            refuse(command.future, error)
        else:
            resend(command)


def begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start work whose failure concerns only the code that awaits the task, if it still does."""
    task = asyncio.ensure_future(work)
    # Else asyncio logs that it was never retrieved.
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return task
