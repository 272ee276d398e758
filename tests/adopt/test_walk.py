"""How a step that leads somewhere else is reported: in a sentence, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adopt.walk import Walk
from tests.adopt.workshop import Stopped, Workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    workshop = Workshop(tmp_path / "workshop", "redis://127.0.0.1:1/0")
    (workshop.folder / "realtime_sockets-1-py3-none-any.whl").touch()
    (workshop.folder / "realtime-sockets-1.tgz").touch()
    return workshop


@pytest.fixture
def through(workshop: Workshop, tmp_path: Path):
    """Takes the steps of a page with these blocks; returns what it said."""

    def through(*blocks: str) -> str:
        said: list[str] = []
        page = tmp_path / "page.md"
        page.write_text("".join(f"```{block}\n```\n" for block in blocks))
        with Walk(workshop, said.append) as walk:
            walk.through(page)
        return "".join(said)

    return through


def test_files_are_written_and_extended(through, workshop: Workshop):
    through('python title="a/b.py"\nx = 1', 'python title="a/b.py, at the end"\ny = 2')
    assert (workshop.project / "a" / "b.py").read_text() == "x = 1\n\ny = 2\n"


def test_output_may_have_more_lines_than_the_page_shows(through):
    said = through("console\n$ printf 'one\\n two \\nthree 3\\n'\none\nthree …")
    assert said.startswith("page.md:1         $ printf")


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ("console\n$ false", r"page\.md:1: \$ false ended with status 1:"),
        ("console\n$ echo yes\nno", r"page\.md:1: \$ echo yes: expected 'no', got:\nyes"),
        ("console\n$ printf 'b\\na\\n'\na\nb", r"page\.md:1: .* expected 'a' / 'b', got:\nb\na"),
        ('console title="terminal x"\nmore', r"page\.md:1: no terminal 'x' is open"),
        ('console title="terminal x"\n^C', r"page\.md:1: no terminal 'x' is open"),
        (
            'console title="terminal x"\n$ echo bye; exit 3\nready',
            r"page\.md:1: expected 'ready'; the terminal 'x' ended with status 3:\nbye",
        ),
    ],
    ids=[
        "a failure",
        "other output",
        "another order",
        "no terminal",
        "nothing to interrupt",
        "a process that ends",
    ],
)
def test_step_that_leads_elsewhere_is_a_sentence(through, block: str, sentence: str):
    with pytest.raises(Stopped, match=sentence):
        through(block)


def test_terminal_is_read_on_where_the_last_block_ended(through):
    wait = "until [ -e go ]; do sleep 0.05; done"
    through(
        f'console title="terminal x"\n$ echo one; {wait}; echo one; sleep 100\none',
        "console\n$ touch go",
        'console title="terminal x"\none',
    )


def test_terminals_have_ended_after_the_walk(through, workshop: Workshop):
    through('console title="terminal x"\n$ echo $$ > pid; echo ready; sleep 1000\nready')
    pid = int((workshop.project / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_packages_of_the_checkout_are_installed_under_their_printed_names(workshop: Workshop):
    pip = workshop.bash('pip install "realtime-sockets[server,web]"')[-1]
    assert pip == f'pip install "realtime-sockets[server,web] @ {workshop.wheel.as_uri()}"'
    npm = workshop.bash("npm install realtime-sockets")[-1]
    assert npm == f"npm install {workshop.tarball}"


def test_ports_of_the_page_are_replaced(workshop: Workshop):
    assert workshop.here("ws://127.0.0.1:8001/") == f"ws://127.0.0.1:{workshop.ports['8001']}/"


def test_nothing_of_the_checkout_is_in_the_environment(workshop: Workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", "/here")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.settings")
    monkeypatch.setenv("REALTIME_PREFIX", "p")
    assert not {"PYTHONPATH", "DJANGO_SETTINGS_MODULE", "REALTIME_PREFIX"} & workshop.env.keys()
