"""What is published: sdist and wheel, looked into."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import websockets
from packaging.requirements import Requirement
from trove_classifiers import classifiers

from tests.dockerfile import parse
from tests.e2e.harness import ROOT
from tests.packages.building import PACKAGES, PROJECT, Built, contents

pytestmark = pytest.mark.slow


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
        ".js",
        ".svg",
        ".po",
        ".mo",
        ".typed",
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected
    assert {
        name for name in contents(built.wheel) if not re.match(r"realtime_sockets-[^/]+/", name)
    } == expected | {"pytest_realtime_sockets.py"}


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
    assert "pytest_realtime_sockets.py" in names
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
    assert metadata.provides_extra == [*PROJECT["optional-dependencies"]]
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


def test_wheel_installs_the_console_script(built: Built):
    [name] = [name for name in contents(built.wheel) if name.endswith(".dist-info/entry_points.txt")]
    assert b"[console_scripts]\nrealtime = realtime.cli:main\n" in contents(built.wheel)[name]
