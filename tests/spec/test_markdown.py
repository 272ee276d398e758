"""The page of events names types in words."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest

from realtime.protocol.json_schema import DELIVERED, schema
from realtime.protocol.payloads import Id
from realtime.protocol.replies import Left
from realtime.spec.markdown import type_of


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Id | None, "id or null"),
        (str | int, "string or integer"),
        (list[Id], "list"),
        (dict[str, int], "object"),
        (Left, "object"),
        (msgspec.Raw, "any JSON"),
        (Literal["a", "b"], "`a` or `b`"),
    ],
)
def test_types(kind: object, words: str):
    assert type_of(schema(kind, DELIVERED)) == words
