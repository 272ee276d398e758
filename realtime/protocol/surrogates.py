"""Lone surrogates become U+FFFD: half of an emoji, as JavaScript's `slice` leaves it, cannot be encoded in UTF-8.

Python and JSON both allow a lone surrogate in a string, and an encoder fails on it later, far from its origin.
Therefore all text of clients, tokens and backbones passes through here where it enters.
"""

from __future__ import annotations

import re
from typing import Any

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair
    r"|(u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half of one
    r"|.)",  # any other escape: a backslash, for one
    re.DOTALL,
)


def whole_text(text: str) -> str:
    """The text with U+FFFD for each lone surrogate; a high and a low surrogate in a row become one character."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def whole_json(text: str) -> str:
    """The same for the escapes in a JSON document, which otherwise stays unchanged."""
    if "\\" not in text or ("\\ud" not in text and "\\uD" not in text):
        return text
    return _ESCAPE.sub(lambda escape: r"\ufffd" if escape[1] else escape[0], text)


def whole(value: Any) -> Any:
    """The same for all strings in a value that was decoded from JSON, keys included.

    Raises `RecursionError` for a value that is nested too deeply.
    """
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, dict):
        return {whole_text(name): whole(item) for name, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value
