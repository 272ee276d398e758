from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from dev import versions
from dev.versions import Versions, find_pythons, main, plan
from tests.testing.test_embedded_redis import executable

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = {version: Path(f"/python{version}") for version in versions.PYTHONS}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What uv is asked for, without being asked."""
    asked: list[tuple[str, ...]] = []

    def uv(*arguments: str) -> str:
        asked.append(arguments)
        return "django==4.2.30\nredis==5.2.1\n-e file:///here\n" if "freeze" in arguments else ""

    monkeypatch.setattr(versions, "uv", uv)
    return asked


def test_python_that_runs_this_is_found():
    assert HERE in find_pythons()


def test_python_that_does_not_run_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As pyenv's shims of versions that are not chosen."""
    executable(tmp_path, "python3.13", "exit 127")
    executable(tmp_path, "python3.12", "echo 3.12.99")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert find_pythons().keys() == {HERE, "3.12"}
    executable(tmp_path, "python3.13", "echo 3.13.0")
    assert list(find_pythons())[-1] == "3.13"


def test_lowest_run_on_the_lowest_python_and_newest_on_the_newest():
    chosen = {each.name: each for each in plan(PYTHONS)}
    assert chosen["lowest"].python == chosen["publisher"].python == PYTHONS["3.11"]
    assert chosen["newest"].python == PYTHONS["3.14"]
    assert "web" in (chosen["lowest"].extras or ())
    assert chosen["publisher"].extras == ()
    assert chosen["newest"].extras is None


def test_what_is_left_out_exists():
    assert all((versions.PROJECT / f"tests/e2e/test_{name}.py").is_file() for name in versions.OWN)


def test_lowest_are_constraints_and_tools_are_not_among_them(installed: list[tuple[str, ...]]):
    Versions("lowest", Path(sys.executable), ("web", "otel")).install()
    compiled, pip = installed[1], installed[2]
    assert "lowest-direct" in compiled
    assert [compiled[at + 1] for at, part in enumerate(compiled) if part == "--extra"] == ["web", "otel"]
    assert pip[pip.index("--constraint") + 1] == str(versions.FOLDER / "lowest.txt")
    assert pip[-2:] == ("--editable", ".[dev]")


def test_newest_have_no_constraints(installed: list[tuple[str, ...]]):
    newest = Versions("newest", Path(sys.executable))
    newest.install()
    assert all("--constraint" not in arguments for arguments in installed)
    assert newest.describe().endswith("django 4.2.30, redis 5.2.1")


def test_what_is_not_there_and_what_failed_is_said(
    installed: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(versions, "find_pythons", lambda: {HERE: Path(sys.executable)})
    monkeypatch.setattr(Versions, "test", lambda self, pytest: self.name != "newest")
    assert main([]) == 1
    printed = capsys.readouterr()
    others = ", ".join(version for version in versions.PYTHONS if version != HERE)
    assert printed.out.splitlines()[0] == f"Not tested, as it is not installed here: Python {others}."
    assert "lowest: Python " in printed.out
    assert printed.err == "The tests failed on: newest.\n"


def test_what_cannot_be_installed_is_one_sentence(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(versions, "UV", executable(tmp_path, "uv", "echo no network >&2; exit 1"))
    assert main([]) == 2
    assert re.fullmatch(r"uv venv --allow-existing failed: no network\n", capsys.readouterr().err)


def test_no_python_at_all_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(versions, "find_pythons", dict)
    assert main([]) == 2
    assert capsys.readouterr().err == "None of the Pythons 3.11, 3.12, 3.13, 3.14 was found.\n"


@pytest.mark.parametrize(("status", "passes"), [(0, True), (1, False)])
def test_tests_run_with_that_python(tmp_path: Path, monkeypatch, status: int, passes: bool):
    chosen = Versions("lowest", Path(sys.executable), (), ("tests/test_conf.py",))
    monkeypatch.setattr(versions, "FOLDER", tmp_path)
    chosen.environment.joinpath("bin").mkdir(parents=True)
    executable(chosen.environment / "bin", "python", f'echo "$@" > {tmp_path}/asked; exit {status}')
    assert chosen.test(["--quiet"]) is passes
    assert (tmp_path / "asked").read_text() == "-m pytest --quiet tests/test_conf.py\n"
