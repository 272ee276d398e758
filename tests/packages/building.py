"""Sdist and wheel, built from a fresh copy."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from packaging.metadata import Metadata

from tests.e2e.harness import ROOT

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


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
