from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from realtime.protocol.surrogates import whole, whole_json, whole_text

ANY_TEXT = st.text(st.characters() | st.characters(categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.integers() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=10,
)


@given(ANY_TEXT)
def test_any_text_can_be_encoded_afterwards(text: str):
    whole_text(text).encode()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_without_halves_stays_as_it_is(text: str):
    assert whole_text(text) == text
    assert whole_json(json.dumps(text)) == json.dumps(text)


@given(JSON)
def test_any_value_and_its_json_can_be_encoded_afterwards(value: object):
    assert json.dumps(whole(value), ensure_ascii=False).encode()
    assert json.dumps(json.loads(whole_json(json.dumps(value))), ensure_ascii=False).encode()


def test_two_halves_that_belong_together_are_one_character():
    assert whole_text("\ud83d\ude00") == whole_text("\U0001f600") == "\U0001f600"
