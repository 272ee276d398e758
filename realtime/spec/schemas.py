"""The schemas that one document is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from realtime.protocol.json_schema import ACCEPTED, DELIVERED, RETURNED, Form, Schema, Schemas


class DocumentSchemas:
    """Schemas in every form, and those among them that the others refer to.

    Args:
        root: What references start with.
        reserved: Names that the document has for something else.
    """

    def __init__(self, root: str = "#/definitions/", reserved: Iterable[str] = ()) -> None:
        taken = set(reserved)
        self._by_form = {form: Schemas(form, root, taken) for form in (ACCEPTED, DELIVERED, RETURNED)}

    def accepted(self, kind: Any) -> Schema:
        """What clients and backbones may send. Raises `NotJSON`, as the others do."""
        return self._of(kind, ACCEPTED)

    def delivered(self, kind: Any) -> Schema:
        """What clients get of an event."""
        return self._of(kind, DELIVERED)

    def returned(self, kind: Any) -> Schema:
        """What clients get of a handler's return value."""
        return self._of(kind, RETURNED)

    @property
    def definitions(self) -> dict[str, Schema]:
        """The schemas that contain themselves, by name."""
        return {
            name: found for schemas in self._by_form.values() for name, found in schemas.definitions.items()
        }

    def _of(self, kind: Any, form: Form) -> Schema:
        return self._by_form[form].of(kind)
