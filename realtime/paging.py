"""Pages of the admin whose cost does not grow with the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.paginator import Paginator
from django.utils.functional import cached_property

if TYPE_CHECKING:
    Base = Paginator[Any]
else:
    Base = Paginator

MOST = 10_000
"""Rows that are counted and listed."""


class BoundedPaginator(Base):
    """Counts and lists the first `MOST` rows: a database reads a whole table to count it.

    Operators find the rows behind them by a search or a filter.
    """

    @cached_property
    def count(self) -> int:
        """The number of rows, at most `MOST`."""
        return min(self._counted, MOST)

    @property
    def is_cut(self) -> bool:
        """Whether there are more rows than are listed."""
        return self._counted > MOST

    @property
    def most(self) -> int:
        """The number of rows that are listed at most."""
        return MOST

    @cached_property
    def _counted(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by().values("pk")[: MOST + 1].count())
