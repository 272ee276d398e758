"""How deep JSON from outside may be nested: the same on every Python, whose parsers stop at depths of their own."""

from __future__ import annotations

import re
from itertools import accumulate

LEVELS = 128
"""The levels of nesting allowed in a frame or message: a value of `values.DEPTH` levels, and what is around it."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # to the end, if it is not closed
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""As signed bytes: 1 where an array or object begins, -1 where it ends."""
_OTHERS = bytes(set(range(256)) - set(b"[{]}"))


class TooDeep(ValueError):
    """A JSON document is nested too deeply."""

    def __init__(self, levels: int) -> None:
        super().__init__(f"nested more than {levels} levels deep")


def check_nesting(text: str, levels: int = LEVELS) -> None:
    """Raise `TooDeep` for a JSON document with more than `levels` arrays and objects inside each other.

    All frames, bus messages and entries of presence pass through here before they are parsed.
    """
    if text.count("[") + text.count("{") > levels and _depth(text) > levels:
        raise TooDeep(levels)


def without_strings(text: str) -> bytes:
    """A JSON document without its strings: keys are missing, too."""
    return _STRING.sub(b"", text.encode("utf-8", "surrogatepass"))


def _depth(text: str) -> int:
    brackets = without_strings(text).translate(_STEPS, _OTHERS)
    return max(accumulate(memoryview(brackets).cast("b")), default=0)
