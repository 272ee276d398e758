"""The schemas that one document is made of."""

from __future__ import annotations

from collections.abc import Iterable

from realtime.protocol.json_schema import ACCEPTED, DELIVERED, RETURNED, Schema, Schemas


class DocumentSchemas:
    """Schemas in every form, and those among them that the others refer to.

    Args:
        root: What references start with.
        reserved: Names that the document has for something else.
    """

    def __init__(self, root: str = "#/definitions/", reserved: Iterable[str] = ()) -> None:
        taken = set(reserved)
        self._forms = [Schemas(form, root, taken) for form in (ACCEPTED, DELIVERED, RETURNED)]
        self.accepted, self.delivered, self.returned = (schemas.of for schemas in self._forms)
        """The schema of a type: what clients and backbones may send, what clients get of an event, and of a handler's
        return value. They raise `NotJSON`."""

    @property
    def definitions(self) -> dict[str, Schema]:
        """The schemas that contain themselves, by name."""
        return {name: found for schemas in self._forms for name, found in schemas.definitions.items()}
