from __future__ import annotations

import shutil
import subprocess
import tarfile
import venv
from pathlib import Path
from uuid import uuid4
from zipfile import ZipFile

import pytest
import websockets
from build import ProjectBuilder
from build.env import DefaultIsolatedEnv
from pyproject_hooks import quiet_subprocess_runner

from tests.e2e.harness import ROOT
from tests.packages.backbone import Backbone, pip
from tests.packages.building import Built, copy_of_the_project


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="module")
def environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip(python), "install", "--quiet", built.wheel], check=True, capture_output=True)
    return python


@pytest.fixture(scope="module")
def backbone(environment: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("project")
    subprocess.run([environment, "-m", "django", "startproject", "shop", folder], check=True)
    with (folder / "shop" / "settings.py").open("a") as settings:
        settings.write("import os\nINSTALLED_APPS += os.environ['APPS'].split()\n")
    return Backbone(environment, folder, redis_url, f"b{uuid4().hex[:8]}")
