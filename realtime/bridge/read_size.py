"""The read size: how many entries of a stream are read at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

READ_FIRST = 100
"""Entries that are read at once after the stream was quiet."""
READ_MOST = 250
"""Entries that are read at once at most.

The command that appends them should fit into the kernel's buffer of a socket: what does not fit is written only when
the next entries have been decoded, and Redis waits for it meanwhile.
"""
READ_BYTES = 1 << 20
"""About as many bytes are read at once."""


class ReadSize:
    """How many entries are read at once: as many as there are, but few of large ones.

    After a failure it is half as many, and then one more each time, as TCP does, so that a slow link seldom fails. Once
    the stream has been quiet, the trouble may be over, and the number starts anew.

    A process begins with one, and reads at most twice as many each time: the one before it may have been killed because
    it read too many huge entries.
    """

    def __init__(self) -> None:
        self._count = READ_FIRST
        self._most = READ_MOST
        self._tried = 1

    @property
    def count(self) -> int:
        """The number now."""
        return min(self._count, self._tried)

    def adapt(self, entries: Sequence[Any]) -> bool:
        """Learn from the entries that were read. Returns whether there are more, as far as that can be known."""
        size = sum([sum(map(len, fields)) for _, fields in entries])
        is_full = len(entries) >= self.count
        self._tried = min(2 * self._tried, READ_MOST)
        self._most = min(self._most + 1, READ_MOST) if is_full else READ_MOST
        fitting = max(len(entries) * READ_BYTES // max(size, 1), 1) if entries else READ_MOST
        self._count = min(fitting, self._most) if is_full else min(fitting, self._count, READ_FIRST)
        return is_full

    def failed(self) -> None:
        """Halve the number: perhaps it was too much at once."""
        self._count = self._most = max(self.count // 2, 1)
