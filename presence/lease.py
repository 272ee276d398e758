"""What Redis knows of an instance: its lease, and which of its calls it has had."""

from __future__ import annotations

from collections.abc import Sequence

from redis.exceptions import ResponseError

from presence import store
from presence.operations import is_own_fault
from presence.store import Caller, Operation


class Lease:
    """An instance's lease in one namespace: every call renews it, and shows whether Redis has lost something."""

    def __init__(self, namespace: str, instance: str) -> None:
        self.namespace = namespace
        self.instance = instance
        self.epoch = ""
        """Of the Redis that has all connections; empty before the first registration."""
        self._is_registered = True
        """False while Redis knows of a part of the connections only: until all were registered, no call counts."""
        self._number = 0
        self._acked = 0

    async def apply(self, operations: Sequence[Operation], *, registers: bool = False) -> list[str]:
        """The answers to some of the first operations.

        An operation that Redis can't do fails alone: its error is raised when it is the very first one. Raises
        `LeaseLost` or `redis.RedisError`.
        """
        while True:
            try:
                return await self._call(operations, registers)
            except ResponseError as error:
                if len(operations) <= 1 or not is_own_fault(error):
                    raise
            operations = operations[: len(operations) // 2]

    async def _call(self, operations: Sequence[Operation], registers: bool) -> list[str]:
        self._number += 1
        number = self._number
        caller = Caller(
            instance=self.instance,
            epoch=self.epoch if self._is_registered else "",
            number=number,
            acked=self._acked,
            registers=registers,
        )
        _, answers = await store.apply(self.namespace, operations, caller)
        self._acked = number
        return answers

    def begin_registration(self, epoch: str) -> bool:
        """No call counts until `end_registration`. Returns whether this Redis has lost everything."""
        self._is_registered = False
        return bool(self.epoch) and epoch != self.epoch

    def end_registration(self, epoch: str) -> None:
        """Redis has all connections now."""
        self.epoch = epoch
        self._is_registered = True
