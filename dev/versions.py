"""`make test-versions`: the tests of `make test` on the lowest and on the newest supported versions.

The lowest are the bounds in pyproject.toml, with the lowest Python; the newest are what the registry serves for the
newest Python on this machine. The tools that the tests use are the newest for both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / ".run/versions"
UV = FOLDER / "uv/bin/uv"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""The supported ones, as far as they can be found on this machine."""
TOOLS = {"demo", "dev"}
"""Extras that no project in production installs: what they ask for is not tested at its lowest."""
LEFT_OPEN = ("-W", "ignore::pytest.PytestUnraisableExceptionWarning")
"""A connection that a test has left is closed by the collector of garbage, in whichever test it runs then.

`make test` fails for that; here it would say nothing about the versions."""
OWN = (
    *(
        "adding_a_namespace",
        "direct",
        "drain",
        "embedded_bridge",
        "exactly_once",
        "floods",
        "limits",
        "live_view",
    ),
    *(
        "lost_history",
        "make_run",
        "redis_options",
        "revocation_races",
        "signing_keys",
        "tokens_lifecycle",
        "types",
    ),
)
"""Tests of whole processes that are left out here: they take minutes, of which packages see little.

Their subject is our own code on the wire, in Redis and under load. The other tests of whole processes run, with every
command, both servers, the databases and the web side."""
SHOWN = ("django", "channels", "redis", "uvicorn", "websockets", "daphne", "djangorestframework", "msgspec")


class CannotTest(Exception):
    """A set of versions could not be installed; the message says why."""


@dataclass(frozen=True)
class Versions:
    """One set of versions and the tests to run on it."""

    name: str
    python: Path
    extras: tuple[str, ...] | None = None
    """The packages of these are installed at their lowest; None: all packages are the newest."""
    tests: tuple[str, ...] = ()
    """Instead of all."""
    options: tuple[str, ...] = ()
    """More options for pytest."""

    @property
    def environment(self) -> Path:
        """The folder of its virtual environment. All that use one Python share it: little has to be exchanged."""
        return FOLDER / f"venv-{_version(self.python)}"

    def install(self) -> None:
        """Make the virtual environment, or bring it up to date. Raises `CannotTest`."""
        uv(
            "venv",
            "--allow-existing",
            "--no-python-downloads",
            "--python",
            str(self.python),
            str(self.environment),
        )
        constraints = [] if self.extras is None else ["--constraint", str(self._lowest(self.extras))]
        uv("pip", "install", *self._target, "--upgrade", *constraints, "--editable", ".[dev]")

    def _lowest(self, extras: Sequence[str]) -> Path:
        file = FOLDER / f"{self.name}.txt"
        chosen = [part for extra in extras for part in ("--extra", extra)]
        uv(
            *("pip", "compile", "--resolution", "lowest-direct", "--python", str(self.python), *chosen),
            *("--no-header", "--no-annotate", "--output-file", str(file), "pyproject.toml"),
        )
        return file

    def describe(self) -> str:
        """One line: the versions that matter most."""
        lines = uv("pip", "freeze", *self._target).splitlines()
        installed = dict(line.split("==") for line in lines if "==" in line)
        shown = [f"{name} {installed[name]}" for name in SHOWN if name in installed]
        return f"{self.name}: Python {_version(self.python)}, {', '.join(shown)}"

    def test(self, pytest: Sequence[str]) -> bool:
        """Whether the tests pass."""
        command = [str(self.environment / "bin/python"), "-m", "pytest", *pytest, *self.options, *self.tests]
        return subprocess.run(command, cwd=PROJECT, check=False).returncode == 0  # noqa: S603

    @property
    def _target(self) -> tuple[str, str]:
        return "--python", str(self.environment)


def find_pythons() -> dict[str, Path]:
    """The supported Pythons on PATH and of pyenv, by version, the lowest first."""
    return {version: found for version in PYTHONS if (found := next(_working(version), None))}


def _working(version: str) -> Iterator[Path]:
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [Path(path) for path in (shutil.which(name), shutil.which("python3"), sys.executable) if path]
    for path in (*found, *sorted(pyenv.glob(f"versions/{version}.*/bin/{name}"))):
        if _version(path).startswith(f"{version}."):
            yield path


def _version(python: Path) -> str:
    """The version of an interpreter; "" if it does not run (pyenv's shims exist for versions that are not chosen)."""
    code = "import platform; print(platform.python_version())"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip()


def plan(pythons: dict[str, Path]) -> list[Versions]:
    """What to run on the Pythons that were found."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = tuple(extra for extra in project["optional-dependencies"] if extra not in TOOLS)
    lowest, newest = next(iter(pythons.values())), list(pythons.values())[-1]
    options = (*LEFT_OPEN, *(f"--ignore=tests/e2e/test_{name}.py" for name in OWN))
    return [
        Versions("lowest", lowest, extras, options=options),
        Versions("publisher", lowest, (), ("tests/test_publisher.py", "tests/redis/test_url.py")),
        Versions("newest", newest, options=options),
    ]


def uv(*arguments: str) -> str:
    """What uv prints. Raises `CannotTest` when it fails."""
    command = [str(UV), "--quiet", "--no-progress", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise CannotTest(f"uv {' '.join(arguments[:2])} failed: {done.stderr.strip()}")
    return done.stdout


def main(pytest: Sequence[str]) -> int:
    """The command line: `pytest` holds pytest's arguments. Returns the exit status."""
    pythons = find_pythons()
    if not pythons:
        print(f"None of the Pythons {', '.join(PYTHONS)} was found.", file=sys.stderr)  # noqa: T201
        return 2
    if missing := [version for version in PYTHONS if version not in pythons]:
        print(f"Not tested, as it is not installed here: Python {', '.join(missing)}.")  # noqa: T201
    failed = []
    for versions in plan(pythons):
        try:
            versions.install()
        except CannotTest as error:
            print(error, file=sys.stderr)  # noqa: T201
            return 2
        print(versions.describe(), flush=True)  # noqa: T201
        if not versions.test(pytest):
            failed.append(versions.name)
    if failed:
        print(f"The tests failed on: {', '.join(failed)}.", file=sys.stderr)  # noqa: T201
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
