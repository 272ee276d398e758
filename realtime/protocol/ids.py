"""Which text may be an id, and which the name of a presence group."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_LENGTH: Final = 64
"""Characters of an id, or of the name of a group; UTF-8 needs at most four bytes for each."""
ID_ALPHABET: Final = "A-Z a-z 0-9 _ - . @ | + ~"
ID_PATTERN: Final = r"^[A-Za-z0-9_.@|+~-]{1,64}$"
_ID = re.compile(ID_PATTERN)
_MAX_DECOMPOSED: Final = 8 * MAX_LENGTH
"""Characters of a name, or of a room, that may be composed: this may take quadratic time."""


def is_id(text: str) -> bool:
    """Whether the text is 1-64 characters out of `A-Z a-z 0-9 _ - . @ | + ~`."""
    return _ID.fullmatch(text) is not None


def is_group(text: str) -> bool:
    """Whether the text may name a presence group: like an id, but with spaces, and letters and digits of any script.

    The letters have to be composed (Unicode's normalization form C): otherwise one name could be spelled in two ways.
    """
    return is_id(text) or (
        0 < len(text) <= MAX_LENGTH
        and unicodedata.is_normalized("NFC", text)
        and all(character == " " or is_id(character) or _is_of_a_script(character) for character in text)
    )


def _is_of_a_script(character: str) -> bool:
    """Whether this is a letter, a digit, or a mark, which some scripts write their vowels with."""
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Nd"


def composed(text: str) -> str:
    """The text in Unicode's normalization form C; one that is too long for a name stays as it is."""
    if text.isascii() or len(text) > _MAX_DECOMPOSED:
        return text
    return unicodedata.normalize("NFC", text)
