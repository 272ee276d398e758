"""Text that UTF-8 can carry: half of a surrogate pair, as JavaScript's `slice` leaves of an emoji, becomes U+FFFD.

Python and JSON both let such a half into a string, and every encoder fails on it later, far from where it came from.
So all that a client, a token or a backbone sends passes through here where it enters.
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
    """The text with U+FFFD instead of each half of a pair; two halves that follow each other become one character."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def whole_json(text: str) -> str:
    """The same for the escapes in the text of a JSON document, which otherwise stays as it is."""
    if "\\ud" not in text and "\\uD" not in text:
        return text
    return _ESCAPE.sub(lambda escape: r"\ufffd" if escape[1] else escape[0], text)


def whole(value: Any) -> Any:
    """The same for all strings in a value that was decoded from JSON, keys included.

    Raises `RecursionError` for what is nested too deeply.
    """
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, dict):
        return {whole_text(name): whole(item) for name, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value
