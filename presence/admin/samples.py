"""Sample data of an event: its required fields, each with a value that fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from realtime.protocol.json_schema import ACCEPTED, Schema, schema
from realtime.protocol.payloads import Payload

_TITLED: Mapping[str, Any] = {
    "group": "attendants",
    "decimal": "1.00",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "duration": "PT1M",
    "date": "2026-01-31",
    "time": "12:00:00",
}
"""Values for schemas with a title, which have a form of their own."""


def sample(payload: type[Payload]) -> str:
    """JSON that holds the required fields of a payload, for an operator to edit.

    >>> print(sample(ThreadMessage))
    {
      "thread_id": "1",
      "message_id": "1"
    }
    """
    described = schema(payload, ACCEPTED)
    return json.dumps(_Sampler(described.get("definitions", {})).value(described), indent=2)


class _Sampler:
    """Makes a value for a schema. `definitions` are the types that contain themselves."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions
        self._open: list[str] = []

    def value(self, kind: Schema) -> Any:
        if reference := kind.get("$ref"):
            return self._referred(reference)
        if "default" in kind:
            return kind["default"]
        if "enum" in kind:
            return kind["enum"][0]
        if parts := kind.get("anyOf"):
            return self.value(next((each for each in parts if self._is_fit(each)), parts[-1]))
        return self._of_type(kind)

    def _is_fit(self, kind: Schema) -> bool:
        """Whether this alternative has an end, and says something."""
        return kind.get("type") != "null" and kind.get("$ref") not in self._open

    def _referred(self, reference: str) -> Any:
        self._open.append(reference)
        found = self.value(self._definitions[reference.rpartition("/")[2]])
        self._open.pop()
        return found

    def _of_type(self, kind: Schema) -> Any:
        match kind.get("type"):
            case "object":
                fields: Mapping[str, Schema] = kind.get("properties", {})
                return {name: self.value(fields[name]) for name in kind.get("required", ())}
            case "array":
                return self._items(kind)
            case "string":
                return _text(kind)
            case "integer" | "number":
                return _number(kind)
            case "boolean":
                return True
        return None

    def _items(self, kind: Schema) -> list[Any]:
        least, items = kind.get("minItems", 0), kind.get("items", {})
        parts = items[:least] if isinstance(items, list) else [items] * least
        return [self.value(each) for each in parts]


def _text(kind: Schema) -> str:
    title = kind.get("title", "")
    if title == "datetime":
        return datetime.now(UTC).isoformat(timespec="seconds")
    text = _TITLED.get(title) or ("1" if title == "id" else "text")
    return str(text).ljust(kind.get("minLength", 0), "x")[: kind.get("maxLength")]


def _number(kind: Schema) -> Any:
    least = kind.get("minimum", kind.get("exclusiveMinimum", 0) + 1)
    step = kind.get("multipleOf", 1)
    return min(-(-max(least, step) // step) * step, kind.get("maximum", kind.get("exclusiveMaximum", 10**15)))
