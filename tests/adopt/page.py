"""A page as the steps that its blocks tell a reader to take. What a block says depends on its language and title:

* any language, `title="support/chat.py"`: this is the file;
* any language, `title="config/settings.py, at the end"`: these lines are added to the file;
* `console`: these commands (`$ …`) end well and write these lines, maybe others between them; `…` is any text;
* `console`, `title="terminal chat"`: a terminal that stays open: its command, and the lines that it writes next;
* the same with `^C`: Ctrl-C in that terminal;
* `text`, `title="browser http://…"`: these texts are on the page in the browser.

A block without a language is a picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.blocks import blocks

PROMPT = "$ "
CTRL_C = "^C"
_AT_THE_END = ", at the end"


@dataclass(frozen=True)
class Step:
    """One thing to do, and where the page says so."""

    where: str
    """The page and the line."""


@dataclass(frozen=True)
class WriteFile(Step):
    path: str
    text: str
    at_the_end: bool


@dataclass(frozen=True)
class Run(Step):
    """A command that ends, and lines that it writes."""

    command: str
    expected: tuple[str, ...]


@dataclass(frozen=True)
class Watch(Step):
    """A terminal that stays open: the command that starts it, or None, and the lines that come next."""

    terminal: str
    command: str | None
    expected: tuple[str, ...]


@dataclass(frozen=True)
class Interrupt(Step):
    """Ctrl-C in a terminal that is open."""

    terminal: str


@dataclass(frozen=True)
class See(Step):
    """Texts that a browser shows at an address."""

    address: str
    expected: tuple[str, ...]


class Unreadable(Exception):
    """The page has a block that nothing can run; the message says which one."""


def steps(page: Path) -> Iterator[Step]:
    """The steps of a page, in its order. Raises `Unreadable` for a block that is none."""
    for block in blocks(page):
        if block.language:
            yield from _steps(f"{page.name}:{block.line}", block.language, block.title, block.text)


def _steps(where: str, language: str, title: str, body: str) -> Iterator[Step]:
    kind, _, name = title.partition(" ")
    if language == "console" and kind == "terminal" and body.strip() == CTRL_C:
        yield Interrupt(where, name)
    elif language == "console" and kind == "terminal":
        [(command, expected)] = _commands(body) if body.startswith(PROMPT) else [(None, _lines(body))]
        yield Watch(where, name, command, expected)
    elif language == "console" and body.startswith(PROMPT) and not title:
        yield from (Run(where, command, expected) for command, expected in _commands(body))
    elif language == "text" and kind == "browser":
        yield See(where, name, _lines(body))
    elif title:
        path = title.removesuffix(_AT_THE_END)
        yield WriteFile(where, path, body, at_the_end=path != title)
    else:
        raise Unreadable(f"{where}: a block of {language} without a title, which nothing can run")


def _commands(body: str) -> list[tuple[str, tuple[str, ...]]]:
    """Each command with the lines that follow it. A command goes on after a backslash, and within quotes."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, rest = _command(part)
        found.append((command, _lines(rest)))
    return found


def _command(part: str) -> tuple[str, str]:
    lines = part.splitlines(keepends=True)
    for count in range(1, len(lines) + 1):
        command = "".join(lines[:count]).rstrip("\n")
        if not command.endswith("\\") and command.count('"') % 2 == 0 and command.count("'") % 2 == 0:
            return command, "".join(lines[count:])
    return part.rstrip("\n"), ""


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())
