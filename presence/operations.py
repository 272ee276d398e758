"""What an instance has to tell Redis about presence: operations, in batches of a bounded size."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any

import msgspec
from redis.exceptions import RedisError, ResponseError

from presence import store
from realtime.conf import conf

BATCH = 500
"""Operations in one call; Redis itself bounds how much work they may be (`store.WORK`)."""
BATCH_BYTES = 256 * 1024
"""Encoded operations in one call: they hold names and groups of any length."""


@dataclass(frozen=True, slots=True)
class Presentee:
    """A connection whose user is listed."""

    connection_id: str
    user_id: str
    name: str
    groups: tuple[str, ...]
    """For a customer: threads."""

    def connect(self) -> dict[str, Any]:
        """The operation that tells Redis of this connection."""
        return {
            "does": "connect",
            "connection": self.connection_id,
            "user": self.user_id,
            "name": self.name,
            "groups": self.groups,
        }


Sign = tuple[str, str]
"""A sign of life: what the operation does, and the user."""


@dataclass(slots=True)
class Pending:
    """An operation that Redis has not answered yet.

    With an `answer`, its caller waits and receives the error if it fails. With a `sign`, it is a sign of life, which is
    put back among the others if it fails: one such operation is enough, however late. Any other operation is kept until
    Redis takes it.
    """

    operation: msgspec.Raw
    answer: asyncio.Future[str] | None = None
    sign: Sign | None = None

    def resolve(self, answer: str) -> None:
        """Hand the answer to the caller."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Tell the caller that the operation was perhaps not done."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error if isinstance(error, RedisError) else RedisError("interrupted"))


class OperationQueue:
    """Operations in the order in which they were submitted, and the users who gave a sign of life."""

    def __init__(self) -> None:
        self._pending: list[Pending] = []
        self._signs: set[Sign] = set()
        self._seen: set[str] = set()
        self._touch_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._pending or self._signs)

    def ask(self, operation: Mapping[str, Any]) -> asyncio.Future[str]:
        """Submit an operation whose answer the caller awaits. Raises `UnicodeEncodeError`."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._pending.append(Pending(store.encode(operation), answer))
        return answer

    def tell(self, operation: Mapping[str, Any] | msgspec.Raw) -> None:
        """Submit an operation that is kept until Redis takes it. Raises `UnicodeEncodeError`."""
        encoded = operation if isinstance(operation, msgspec.Raw) else store.encode(operation)
        self._pending.append(Pending(encoded))

    def heartbeat(self, user_id: str) -> None:
        """The user's client sent a heartbeat."""
        self._signs.add(("heartbeat", user_id))

    def seen(self, user_id: str) -> None:
        """The user's client sent some frame: its record must not expire. Submitted a few times per expiry."""
        self._seen.add(user_id)

    def touch_seen(self, now: float) -> None:
        """Submit the users who were seen, if it is time."""
        if now >= self._touch_at:
            self._touch_at = now + conf().presence_ttl / 4
            self._signs |= {("touch", user) for user in self._seen}
            self._seen = set()

    def take(self) -> list[Pending]:
        """Take out as many operations as fit into one call."""
        while self._signs and len(self._pending) < BATCH:
            does, user = sign = self._signs.pop()
            self._pending.append(Pending(store.encode({"does": does, "user": user}), sign=sign))
        size = batch_size([pending.operation for pending in self._pending[:BATCH]])
        batch, self._pending = self._pending[:size], self._pending[size:]
        return batch

    def settle(self, batch: Sequence[Pending], answers: Sequence[str]) -> Iterator[tuple[str, str]]:
        """The first operations were answered, the rest stays. Yields the users who gave a sign of life, and answers."""
        self._pending = [*batch[len(answers) :], *self._pending]
        for pending, answer in zip(batch, answers, strict=False):
            pending.resolve(answer)
            if pending.sign is not None:
                yield pending.sign[1], answer

    def leave_out(self, batch: Sequence[Pending], error: BaseException) -> None:
        """Redis can't do the first operation, and never will."""
        batch[0].fail(error)
        self._pending = [*batch[1:], *self._pending]

    def put_back(self, batch: Sequence[Pending], error: BaseException) -> None:
        """Redis may have done the batch or not: callers who wait are told so, and the rest is tried again."""
        kept = []
        for pending in batch:
            if pending.sign is not None:
                self._signs.add(pending.sign)
            elif pending.answer is not None:
                pending.fail(error)
            else:
                kept.append(pending)
        self._pending = kept + self._pending


def batch_size(operations: Sequence[msgspec.Raw]) -> int:
    """How many of at most `BATCH` operations go into one call: one at least."""
    sizes = accumulate(len(memoryview(operation)) for operation in operations)
    return max(1, sum(1 for _ in takewhile(lambda size: size <= BATCH_BYTES, sizes)))


def is_own_fault(error: BaseException) -> bool:
    """Whether a call failed because of its operations: they would fail again, whatever the state of Redis."""
    text = str(error).removeprefix("ERR ")
    return isinstance(error, ResponseError) and text.startswith(_OWN_FAULTS)


_OWN_FAULTS = ("user_script", "Error running script", "WRONGTYPE")
