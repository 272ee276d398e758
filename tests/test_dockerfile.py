"""The images, as far as that can be told without a Docker engine: linted, and their build steps carried out here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass, field
from importlib.metadata import requires
from itertools import chain
from pathlib import Path
from string import Template

import pytest
from django.core.management import get_commands
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.e2e.harness import ROOT, Process, free_port

HADOLINT = Path(sys.executable).parent / "hadolint"
TARGETS = ("sockets", "web")


@dataclass
class Stage:
    """One `FROM` and what follows; instructions that a later stage inherits are looked up in its base."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        inherited = STAGES[self.base].all(name) if self.base in STAGES else []
        return inherited + [argument for instruction, argument in self.instructions if instruction == name]

    def last(self, name: str) -> str:
        return self.all(name)[-1]


ARGUMENTS: dict[str, str] = {}
"""What stands before the first `FROM`: arguments of the bases, and their defaults."""


def parse(text: str) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    lines = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ").splitlines()
    for name, _, argument in (line.partition(" ") for line in lines if line.strip()):
        if name == "FROM":
            base, _, alias = argument.partition(" AS ")
            stages[alias] = Stage(Template(base).substitute(ARGUMENTS))
        elif not stages:
            ARGUMENTS.update([argument.split("=", 1)])
        else:
            list(stages.values())[-1].instructions.append((name, argument.strip()))
    return stages


STAGES = parse((ROOT / "Dockerfile").read_text())


def commands() -> list[list[str]]:
    """Every command that a finished image starts, as its words."""
    lines = [STAGES[target].last(name) for target in TARGETS for name in ("CMD", "HEALTHCHECK")]
    return [json.loads(re.search(r"\[.*\]", line)[0]) for line in lines]  # type: ignore[index]


# --- The file -------------------------------------------------------------------------------------------


def test_hadolint_finds_nothing():
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", TARGETS)
def test_image_does_not_run_as_root_and_stops_by_sigterm(target: str):
    stage = STAGES[target]
    assert int(stage.last("USER").partition(":")[0]) > 0
    assert stage.last("STOPSIGNAL") == "SIGTERM"
    assert stage.instructions[-1][0] == "CMD"


def test_base_images_have_a_tag_and_a_digest_and_can_be_replaced():
    bases = {stage.base for stage in STAGES.values()} - set(STAGES)
    assert bases == set(ARGUMENTS.values())
    for base in bases:
        assert re.fullmatch(r"[a-z]+:\d[\w.-]+@sha256:[0-9a-f]{64}", base)


# --- What is installed into them ------------------------------------------------------------------------

PIN = re.compile(r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert not re.sub(r"(?m)^#.*$", "", PIN.sub("", text)).strip(), "something has no hash"
    return {canonicalize_name(found[1]): found[2] for found in PIN.finditer(text)}


def needed(*extras: str) -> set[str]:
    """Every package that the project needs, and those that these need, as they are installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = [
        *project["dependencies"],
        *chain.from_iterable(project["optional-dependencies"][e] for e in extras),
    ]
    asked = [Requirement(line) for line in own]
    seen: set[str] = set()
    for requirement in asked:  # (which grows)
        name, wanted = canonicalize_name(requirement.name), ("", *requirement.extras)
        seen.add(name)
        for line in requires(name) or ():
            further = Requirement(line)
            applies = further.marker is None or any(further.marker.evaluate({"extra": e}) for e in wanted)
            if applies and str(further) not in map(str, asked):
                asked.append(further)
    return seen


@pytest.mark.parametrize(("name", "extras"), [("sockets", ()), ("web", ("web",))])
def test_what_is_installed_is_pinned_by_hash_at_the_versions_that_were_tested(
    name: str, extras: tuple[str, ...]
):
    tested = {
        canonicalize_name(line.split("==")[0]): line.split("==")[1]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    pinned = pins(name)
    assert {package: tested.get(package) for package in pinned} == pinned, "run `make lock`"
    assert needed(*extras) <= set(pinned), "run `make lock`"


def test_nothing_is_installed_without_a_hash():
    for stage in STAGES.values():
        for line in stage.all("RUN"):
            for command in line.split("&&"):
                if "pip" in command and ("install" in command or "wheel" in command.split()):
                    checked = "--require-hashes" in command or "--no-index" in command
                    assert checked or "uninstall" in command, command
    assert set(pins("build")) == {"setuptools"}


def test_what_is_copied_exists_and_is_not_ignored():
    ignore = (ROOT / ".dockerignore").read_text().split()
    for stage in STAGES.values():
        for line in stage.all("COPY"):
            *sources, _ = line.split()
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in STAGES
                continue
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignore


def test_commands_of_the_images_exist():
    for command in commands():
        assert command[0] == "python"
        if command[1] == "manage.py":
            assert command[2] in get_commands()
        else:
            compile(command[2], "HEALTHCHECK", "exec")
            assert "/healthz" in command[2]


# --- Its build steps ------------------------------------------------------------------------------------


class Build:
    """Carries out a stage's COPY and RUN in a folder that stands for the image's root."""

    def __init__(self, root: Path) -> None:
        self.root = self.directory = root
        self.tools = root / "tools"
        venv.create(self.tools, with_pip=True, symlinks=True)

    def inside(self, path: str) -> str:
        """A path of the image, or a command line that names some."""
        return re.sub(r"(?<![\w./])(/opt/venv|/src|/app)\b", rf"{self.root}\1", path)

    def stage(self, name: str) -> None:
        stage = STAGES[name]
        if stage.base in STAGES:
            self.stage(stage.base)
        arguments: dict[str, str] = {}
        for instruction, argument in stage.instructions:
            match instruction:
                case "WORKDIR":
                    self.directory = Path(self.inside(argument))
                    self.directory.mkdir(parents=True, exist_ok=True)
                case "ARG":
                    arguments.update([argument.split("=", 1)])
                case "COPY":
                    *sources, target = argument.split()
                    for source in sources:
                        copy(ROOT / source, self.directory / target)
                case "RUN":
                    self.run(argument, arguments)

    def run(self, command: str, arguments: dict[str, str]) -> None:
        done = subprocess.run(
            ["sh", "-c", self.inside(command)],
            cwd=self.directory,
            env=self.environment(PATH=f"{self.tools}/bin:/usr/bin:/bin", **arguments),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def environment(self, **env: str) -> dict[str, str]:
        """The image's, not ours: what helps to find a package index is let through."""
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        return {**kept, "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8", **env}


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    build = Build(tmp_path_factory.mktemp("image"))
    build.stage("build-web")
    return build


@pytest.fixture
def image(built: Build, tmp_path: Path) -> dict[str, str]:
    """The environment of a finished image."""
    keys = {
        "SECRET_KEY": "k" * 50,
        "JWT_SIGNING_KEY": "a key for the images of these tests",
        "ALLOWED_HOSTS": "support.example.com",
    }
    return built.environment(
        PATH=f"{built.inside('/opt/venv')}/bin:/usr/bin:/bin",
        DATABASE_URL=f"sqlite:///{tmp_path / 'db.sqlite3'}",
        **keys,
    )


@pytest.mark.slow
@pytest.mark.parametrize("settings_module", ["sockets", "web"])
def test_installed_project_passes_its_checks(built: Build, image: dict[str, str], settings_module: str):
    done = subprocess.run(
        ["python", "manage.py", "check"],
        cwd=built.inside("/app"),
        env={**image, "DJANGO_SETTINGS_MODULE": f"realtime.settings.{settings_module}"},
        executable=built.inside("/opt/venv/bin/python"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.slow
def test_installed_project_has_its_data_files_and_nothing_of_the_demo_or_the_tests(built: Build):
    [installed] = Path(built.inside("/opt/venv")).glob("lib/python*/site-packages")
    expected = {
        path.relative_to(ROOT)
        for package in ("realtime", "hub", "portal", "presence")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {path for path in expected if path.suffix == ".lua"}
    assert not {path for path in expected if not (installed / path).exists()}
    assert not (installed / "demo").exists()
    assert not (installed / "tests").exists()
    assert not (installed / "pip").exists()
    assert (installed / "static/admin").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("target", "port"), [("sockets", "SOCKETS_PORT"), ("web", "WEB_PORT")])
def test_image_starts_and_is_healthy(
    built: Build, image: dict[str, str], target: str, port: str, tmp_path: Path, redis_url: str
):
    settings = dict(pair.split("=", 1) for line in STAGES[target].all("ENV") for pair in shlex.split(line))
    settings.pop("PATH")
    env = {**image, **settings, port: str(free_port()), "REDIS_URL": redis_url}
    env[port.replace("PORT", "HOST")] = "127.0.0.1"
    python = built.inside("/opt/venv/bin/python")
    command, health = commands()[TARGETS.index(target) * 2 :][:2]
    process = Process(
        target, [python, built.inside(f"/app/{command[1]}"), *command[2:]], env, tmp_path / "log"
    )
    try:
        process.wait_for("ready")
        subprocess.run([python, *health[1:]], env=env, check=True)
    finally:
        process.stop()
    assert "Traceback" not in process.output


@pytest.mark.slow
def test_recorder_and_bridge_are_in_the_images(built: Build, image: dict[str, str]):
    for command in ("runbridge", "runrecorder", "migrate"):
        subprocess.run(
            [built.inside("/opt/venv/bin/python"), "manage.py", command, "--help"],
            cwd=built.inside("/app"),
            env=image,
            check=True,
            stdout=subprocess.DEVNULL,
        )
