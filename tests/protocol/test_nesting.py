from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.protocol.nesting import LEVELS, TooDeep, check_nesting

JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a"\\[]{}:,\ud800é'),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='"\\[{]}'), inner, max_size=3)
    ),
)


def levels(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(levels, value.values() if isinstance(value, dict) else value), default=0)


def is_too_deep(text: str) -> bool:
    try:
        check_nesting(text)
    except TooDeep:
        return True
    return False


@given(JSON, st.integers(LEVELS - 8, LEVELS + 1), st.booleans())
def test_levels_are_counted_as_json_has_them(value: Any, around: int, is_ascii: bool):
    found = levels(value) + around
    for number in range(around):
        value = [value] if number % 2 else {"[": value, "]": "[{" * LEVELS}
    assert is_too_deep(json.dumps(value, ensure_ascii=is_ascii)) is (found > LEVELS)


def test_width_is_not_depth():
    check_nesting("[" + "[[]]," * 10_000 + "{}]")
    check_nesting('["' + "[{" * 10_000 + '"]')


@pytest.mark.parametrize("part", ['"', '\\"', '"\\', "[", "]", '"[', "[]", '["\\"'], ids=range(8))
def test_text_that_is_no_json_takes_no_longer(part: str):
    """A quotation mark that is never closed ends the text, instead of being looked for again and again."""
    is_too_deep("[" * LEVELS + "]" * LEVELS + '["' + part * 500_000)
