"""The walls between packages, and the size of what lives in them."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("realtime", "hub", "portal", "presence")
LONGEST_FILE = 400
LONGEST_CLASS = 250
MOST_MODULES = 10
SOURCES = sorted(
    path
    for package in (*PACKAGES, "dev")
    for path in (ROOT / package).rglob("*.py")
    if "migrations" not in path.parts
)
CODE = sorted(
    {
        *SOURCES,
        *(
            path
            for folder in ("tests", "bench", "demo")
            for path in (ROOT / folder).rglob("*.py")
            if not {"migrations", "node_modules", ".venv"} & {*path.parts}
        ),
    }
)
"""What is held to the bounds: the product, and what tests, measures and shows it."""
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "importlinter"
]["contracts"]
LAYERS = [
    re.split(r"\s*\|\s*", layer)
    for contract in CONTRACTS
    if "containers" not in contract
    for layer in contract.get("layers", [])
]
"""From the top down; the members of a layer don't know each other."""


# --- Walls -------------------------------------------------------------------------------------------


def forbidden() -> Iterator[tuple[str, str]]:
    """Every import that a contract rules out: who must not import what."""
    for above, below in pairwise(LAYERS):
        yield from ((module, above[0]) for module in below)
    for layer in LAYERS:
        yield from pairwise([*layer, layer[0]] if len(layer) > 1 else [])
    for contract in CONTRACTS:
        for source in contract.get("source_modules", []):
            yield from ((source, target) for target in contract["forbidden_modules"])
        if contract["type"] == "independence":
            yield from pairwise([*contract["modules"], contract["modules"][0]])


FORBIDDEN = sorted(set(forbidden()))


def append(path: Path, text: str) -> None:
    with path.open("a") as opened:
        opened.write(text)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What import-linter reports of a copy of the code with every forbidden import in it.

    A package makes its imports in two new files, in one of them for the type checker only.
    """
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in FORBIDDEN:
        path = copy / source.replace(".", "/")
        append(path / "planted.py" if path.is_dir() else path.with_suffix(".py"), f"\nimport {target}\n")
        if path.is_dir():
            typed = f"from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import {target}\n"
            append(path / "planted_for_types.py", typed)
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("source", "target"), FORBIDDEN)
def test_import_against_a_contract_is_refused(report: str, source: str, target: str):
    is_package = (ROOT / source.replace(".", "/")).is_dir()
    for module in (".planted", ".planted_for_types") if is_package else ("",):
        assert re.search(rf"- +{re.escape(source + module)} -> {re.escape(target)} \(l\.\d+", report)


def test_contracts_hold_what_the_documents_promise():
    promised = {
        ("realtime.checks", "hub"),
        ("realtime.server", "presence"),
        ("realtime.protocol", "asyncio"),
        ("realtime.protocol", "redis"),
        ("realtime.bridge", "realtime.web"),
        ("realtime.client", "realtime.protocol"),
        ("hub", "portal"),
    }
    assert promised <= {*FORBIDDEN}


def test_every_module_is_in_a_layer():
    """So that a new file can't fall outside the walls. The client is a program of its own, Django finds the rest."""
    outside = {"realtime.client", *(f"presence.{name}" for name in ("apps", "management", "migrations"))}
    for package in ("realtime", "presence"):
        modules = {
            f"{package}.{path.stem}"
            for path in (ROOT / package).iterdir()
            if path.suffix == ".py" or (path / "__init__.py").exists()
        } - {f"{package}.__init__"}
        assert modules - outside <= {*chain(*LAYERS)}


# --- Sizes -------------------------------------------------------------------------------------------


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_few_modules_are_directly_in_the_kernel():
    assert len([*(ROOT / "realtime").glob("*.py")]) <= MOST_MODULES


def test_every_package_of_the_kernel_says_what_lives_there_and_what_may_not():
    packages = list((ROOT / "realtime").glob("*/__init__.py"))
    assert packages
    for path in packages:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert len(re.findall(r"[.:](?:\s|$)", docstring)) >= 3, relative(path)


def test_no_file_is_long():
    lengths = {relative(path): len(path.read_text().splitlines()) for path in CODE}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_class_is_long():
    lengths = {
        f"{relative(path)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_CLASS} == {}


# --- Private names -----------------------------------------------------------------------------------


def private_names(path: Path) -> Iterator[str]:
    """Private names of other files that a file imports, or replaces by their string. (Attributes are ruff's SLF001.)"""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {"setattr", "delattr"}:
            names = [
                str(each.value).rpartition(".")[2] for each in node.args[:2] if isinstance(each, ast.Constant)
            ]
        else:
            names = []
        yield from (name for name in names if re.match("_[a-zA-Z]", name))


def test_private_name_stays_in_its_file():
    found = {relative(path): names for path in CODE if (names := [*private_names(path)])}
    assert found == {}
