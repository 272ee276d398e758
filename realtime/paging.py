"""Pages of the admin whose cost does not grow with the table."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import SuspiciousOperation
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.utils.functional import cached_property

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    Base = Paginator[Any]
    AdminBase = ModelAdmin[Any]
else:
    Base = Paginator
    AdminBase = object

_ROW_ID = re.compile("[0-9]{1,18}", re.ASCII)
"""An id that any database can be asked for. Django 4.2 asks for any number, and the database refuses it."""

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


class BoundedRows(AdminBase):
    """The admin of a long table: bounded pages, actions on the rows of one, an answer to ids that no row can have.

    The template `actions.html` of each such table leaves out Django's offer to select the rows of all pages: before an
    action is confirmed each row would be shown, and the confirmation have more fields than a request may have.
    """

    paginator = BoundedPaginator
    show_full_result_count = False

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        return super().get_object(request, object_id, from_field) if _ROW_ID.fullmatch(object_id) else None

    def response_action(
        self, request: HttpRequest, queryset: Any, *args: Any, **more: Any
    ) -> HttpResponse | None:
        """Raises `SuspiciousOperation` (400) for rows that no page of the list offers."""
        if request.POST.get("select_across", "0") != "0":
            raise SuspiciousOperation("an action is for the rows of a page")
        if not all(map(_ROW_ID.fullmatch, request.POST.getlist(ACTION_CHECKBOX_NAME))):
            raise SuspiciousOperation("not the id of a row")
        return super().response_action(request, queryset, *args, **more)
