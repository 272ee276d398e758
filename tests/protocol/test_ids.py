from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.protocol.ids import ID_PATTERN, composed, is_group, is_id

IDS = st.from_regex(r"[A-Za-z0-9_.@|+~-]{1,64}", fullmatch=True)
_LETTERS = st.characters(categories=["L", "M", "Nd"]) | st.sampled_from(" _-.@|+~")
GROUPS = st.text(_LETTERS, min_size=1, max_size=30).map(composed)


@given(IDS)
def test_id_is_1_to_64_characters_of_its_alphabet(text: str):
    assert is_id(text)
    assert is_group(text)
    assert re.search(ID_PATTERN, text)


@pytest.mark.parametrize(
    "text", ["7", "ana.maria+desk@example.com|x~1", "auth0|5f7c8ec7", "-", ".", "x" * 64]
)
def test_what_other_systems_use_as_an_id_is_one(text: str):
    assert is_id(text)


@pytest.mark.parametrize(
    "text", ["", "x" * 65, "a b", "a:b", "é", "٧", "7\n", "a/b", "*", "\x00", "a,b", "{a}"]
)
def test_other_text_is_no_id(text: str):
    assert not is_id(text)


@given(GROUPS)
def test_group_has_spaces_and_letters_of_any_script(text: str):
    assert is_group(text)


@pytest.mark.parametrize(
    "text", ["Équipe São Paulo", "客服 二组", "टीम २", "فريق ٢", "Ελλάδα", " ", "é" * 64, "ß"]
)
def test_names_that_people_give_to_groups(text: str):
    assert is_group(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "é" * 65,
            "a:b",
            "a\nb",
            "a\tb",
            "a\u00a0b",
            "💬",
            "a/b",
            "a,b",
            "*",
            "a\x00",
            "\ud800",
            "\u200bé",
        ),
        "E\u0301quipe",  # not composed
    ],
)
def test_other_text_is_no_group(text: str):
    assert not is_group(text)


@given(st.text(max_size=80))
def test_name_is_the_same_however_it_was_spelled(text: str):
    assert composed(unicodedata.normalize("NFD", text)) == composed(text)
    assert composed(composed(text)) == composed(text)
