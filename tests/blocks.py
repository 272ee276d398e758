"""The blocks of code in the documentation, which tests run as they stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
_BLOCK = re.compile(r'^( *)```(\w*)(?: title="([^"]+)")?\n(.*?)^\1```$', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of a page, without its indentation."""

    line: int
    language: str
    title: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in its order."""
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        indent, language, title, body = found.groups()
        lines = "".join(each.removeprefix(indent) for each in body.splitlines(keepends=True))
        yield Block(text.count("\n", 0, found.start()) + 1, language, title or "", lines)


def titled(name: str) -> dict[str, str]:
    """The blocks of a page of docs/ that have a title, by title."""
    return {block.title: block.text for block in blocks(DOCS / name) if block.title}


def only(name: str, language: str, word: str) -> str:
    """The one block of a page of docs/ in this language with this word in it."""
    [found] = [
        block.text for block in blocks(DOCS / name) if block.language == language and word in block.text
    ]
    return found
