"""What is published: sdist and wheel, built from a fresh copy and looked into."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest
import websockets
from build import ProjectBuilder
from build.env import DefaultIsolatedEnv
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from pyproject_hooks import quiet_subprocess_runner
from trove_classifiers import classifiers

from tests.dockerfile import parse
from tests.e2e.harness import ROOT
from tests.example_environment import example

pytestmark = pytest.mark.slow

PACKAGES = ("realtime", "hub", "portal", "presence")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_PYTHON = shutil.ignore_patterns(
    ".[!d]*", "*.egg-info", "__pycache__", "build", "db.sqlite3*", "node_modules"
)


@dataclass
class Built:
    sdist: Path
    wheel: Path
    wheel_of_sdist: Path

    @property
    def metadata(self) -> Metadata:
        """Raises if there is a field that an index would refuse."""
        with ZipFile(self.wheel) as archive:
            [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            return Metadata.from_email(archive.read(name))


def copy_of_the_project(folder: Path) -> Path:
    """A fresh copy, without what was generated in the checkout."""
    return shutil.copytree(ROOT, folder, ignore=NOT_PYTHON)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("packages")
    source = copy_of_the_project(folder / "source")
    with DefaultIsolatedEnv() as environment:
        builder = ProjectBuilder.from_isolated_env(environment, source, quiet_subprocess_runner)
        environment.install(builder.build_system_requires)
        sdist = Path(builder.build("sdist", folder))
        wheel = Path(builder.build("wheel", folder))
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        [unpacked] = (folder / "unpacked").iterdir()
        again = ProjectBuilder.from_isolated_env(environment, unpacked, quiet_subprocess_runner)
        return Built(sdist, wheel, Path(again.build("wheel", folder / "again")))


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(built: Built):
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {Path(name).suffix for name in expected} == {
        ".py",
        ".lua",
        ".html",
        ".css",
        ".po",
        ".mo",
        ".typed",
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected
    assert {
        name for name in contents(built.wheel) if not re.match(r"realtime_sockets-[^/]+/", name)
    } == expected


def documentation() -> set[str]:
    """What a user reads and deploys with, by its path in the checkout."""
    files = [path for folder in ("docs", "deploy") for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [*ROOT.glob("*.md"), ROOT / "Dockerfile", ROOT / "client" / "README.md"]
    return {str(path.relative_to(ROOT)) for path in files}


def test_wheel_brings_documentation_compose_file_and_image_recipe(built: Built):
    brought = {
        name.partition("/data/share/doc/realtime-sockets/")[2]: data
        for name, data in contents(built.wheel).items()
        if ".data/" in name
    }
    assert brought == {name: (ROOT / name).read_bytes() for name in documentation()}


def test_links_of_the_package_page_lead_to_what_the_wheel_brings():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r'\]\(([^):#]+)[^)]*\)|(?:src|srcset)="([^"]+)"', text)
    assert {link or image for link, image in links} <= {*documentation(), "LICENSE"}


def test_wheel_of_the_sdist_is_the_same(built: Built):
    assert contents(built.wheel_of_sdist) == contents(built.wheel)


def test_sdist_holds_what_the_images_are_built_from_and_no_tests(built: Built):
    with tarfile.open(built.sdist) as archive:
        names = {str(Path(*Path(name).parts[1:])) for name in archive.getnames()}
    folders = {Path(name).parts[0] for name in names if len(Path(name).parts) > 1}
    assert folders == {*PACKAGES, "realtime_sockets.egg-info", "client", "deploy", "docs", "requirements"}
    stages = parse((ROOT / "Dockerfile").read_text()).values()
    copies = [step for stage in stages for step in stage.steps if step.name == "COPY" and not step.stage]
    needed = {word for step in copies for word in step.words[:-1] if "$" not in word}
    assert {*needed, "Dockerfile", ".dockerignore"} <= names
    assert documentation() <= names


def test_metadata_is_what_the_project_says(built: Built):
    metadata = built.metadata
    assert metadata.name == PROJECT["name"]
    assert str(metadata.version) == PROJECT["version"]
    assert metadata.summary == PROJECT["description"]
    assert str(metadata.requires_python) == PROJECT["requires-python"]
    assert metadata.provides_extra == ["web", "otel", "dev"]
    always = {requirement for requirement in metadata.requires_dist or () if not requirement.marker}
    assert always == set(map(Requirement, PROJECT["dependencies"]))


def test_licence_is_named_and_comes_along(built: Built):
    assert built.metadata.license_expression == "MIT"
    assert built.metadata.license_files == ["LICENSE"]
    [name] = [name for name in contents(built.wheel) if name.endswith("/LICENSE")]
    assert contents(built.wheel)[name] == (ROOT / "LICENSE").read_bytes()


def test_index_shows_the_readme(built: Built):
    assert built.metadata.description_content_type == "text/markdown"
    assert built.metadata.description == (ROOT / "README.md").read_text()


def test_index_knows_every_classifier(built: Built):
    assert set(built.metadata.classifiers or ()) <= classifiers
    assert "Typing :: Typed" in (built.metadata.classifiers or ())


def test_client_needs_websockets_and_nothing_else(built: Built, tmp_path: Path):
    (tmp_path / "websockets").symlink_to(Path(websockets.__file__).parent)
    code = f"import sys; sys.path += {[str(built.wheel), str(tmp_path)]}; from realtime.client import Client"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, beside the packages of this one; returns its Python."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    [site] = (folder / "venv").glob("lib/python*/site-packages")
    with ZipFile(built.wheel) as archive:
        archive.extractall(site)
    (site / "others.pth").write_text(str(Path(websockets.__file__).parents[1]))
    shutil.copy(ROOT / "manage.py", folder)
    return python


@pytest.mark.parametrize(
    ("side", "command"), [("sockets", "check"), ("web", "check"), ("web", "collectstatic")]
)
def test_installed_wheel_runs_without_the_repository(
    installed: Path, tmp_path: Path, side: str, command: str
):
    env = {**example(side), "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}"}
    manage = installed.parents[2] / "manage.py"
    done = subprocess.run(
        [installed, manage, command, *(["--noinput"] if command == "collectstatic" else [])],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def realtime(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**example("sockets"), "PATH": os.environ["PATH"]}
    env.pop("DJANGO_SETTINGS_MODULE")
    command = [installed, "-m", "realtime", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_wheel_installs_the_console_script(built: Built):
    [name] = [name for name in contents(built.wheel) if name.endswith(".dist-info/entry_points.txt")]
    assert b"[console_scripts]\nrealtime = realtime.cli:main\n" in contents(built.wheel)[name]


def test_console_script_runs_without_the_repository(installed: Path, tmp_path: Path):
    done = realtime(installed, tmp_path, "token", "--user", "7", "--role", "attendant")
    assert (done.returncode, done.stderr, done.stdout.count(".")) == (0, "", 2)
    assert realtime(installed, tmp_path, "--version").stdout == f"realtime-sockets {PROJECT['version']}\n"


def test_installed_documentation_is_found_and_read(installed: Path, tmp_path: Path):
    folder, *pages = realtime(installed, tmp_path, "docs").stdout.splitlines()
    assert (Path(folder) / "deploy" / "compose.yaml").exists()
    assert (Path(folder) / "Dockerfile").exists()
    assert "  docs/deployment.md" in pages
    page = realtime(installed, tmp_path, "docs", "deployment").stdout
    assert page == (ROOT / "docs" / "deployment.md").read_text()
    done = realtime(installed, tmp_path, "docs", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no page nothing; the pages are " in done.stderr
