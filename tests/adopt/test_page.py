"""The reader turns blocks of a page into steps; docs/adopting.md names each file in its text and in the block."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adopt.__main__ import BEFORE, PAGE
from tests.adopt.page import Interrupt, Run, See, Step, Unreadable, Watch, WriteFile, steps


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str) -> list[Step]:
        page = tmp_path / "page.md"
        page.write_text(text)
        return [*steps(page)]

    return read


def test_block_with_a_path_is_that_file(read):
    [step] = read('Text.\n\n```python title="support/chat.py"\nx = 1\n```\n')
    assert step == WriteFile("page.md:3", "support/chat.py", "x = 1\n", at_the_end=False)


def test_lines_can_be_added_to_a_file(read):
    [step] = read('```python title="urls.py, at the end"\nx = 1\n```\n')
    assert step == WriteFile("page.md:1", "urls.py", "x = 1\n", at_the_end=True)


def test_block_of_a_list_loses_its_indentation(read):
    [step] = read('1. Write\n\n   ```python title="a.py"\n   if x:\n       y()\n   ```\n')
    assert isinstance(step, WriteFile)
    assert step.text == "if x:\n    y()\n"


def test_commands_come_with_the_lines_that_they_write(read):
    assert read("```console\n$ first\none\n\ntwo\n$ second\n```\n") == [
        Run("page.md:1", "first", ("one", "two")),
        Run("page.md:1", "second", ()),
    ]


@pytest.mark.parametrize("command", ["a \\\n  b", 'python -c "\nprint(1)\n"', "echo 'a\nb'"], ids=repr)
def test_command_goes_on_after_a_backslash_and_within_quotes(read, command: str):
    assert read(f"```console\n$ {command}\nwritten\n```\n") == [Run("page.md:1", command, ("written",))]


def test_terminal_is_started_read_and_interrupted(read):
    assert read(
        '```console title="terminal relay"\n$ relay\nready\n```\n'
        '```console title="terminal relay"\nmore\n```\n'
        '```console title="terminal relay"\n^C\n```\n'
    ) == [
        Watch("page.md:1", "relay", "relay", ("ready",)),
        Watch("page.md:5", "relay", None, ("more",)),
        Interrupt("page.md:8", "relay"),
    ]


def test_browser_shows_texts(read):
    [step] = read('```text title="browser http://127.0.0.1:8000/"\nHello\n```\n')
    assert step == See("page.md:1", "http://127.0.0.1:8000/", ("Hello",))


def test_block_without_a_language_is_a_picture(read):
    assert read("```\na ──► b\n```\n") == []


@pytest.mark.parametrize("block", ["python\nx = 1", "console\nno prompt", "sh\n$ ls"], ids=repr)
def test_block_that_nothing_can_run_is_refused(read, block: str):
    with pytest.raises(Unreadable, match=r"page\.md:2: a block of \w+ without a title"):
        read(f"\n```{block}\n```\n")


@pytest.mark.parametrize("page", [BEFORE, PAGE], ids=lambda page: page.name)
def test_every_block_of_the_page_is_run(page: Path):
    assert len([*steps(page)]) > 10


def test_page_names_each_file_before_its_block():
    lines = PAGE.read_text().splitlines()
    for step in steps(PAGE):
        if isinstance(step, WriteFile):
            line = int(step.where.rpartition(":")[2])
            above = "\n".join(lines[max(line - 22, 0) : line - 1])
            assert f"`{step.path}`" in above, f"{step.where}: the text above does not name {step.path}"
