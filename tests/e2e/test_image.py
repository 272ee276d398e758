"""The recipe for an image with a product's own code, step by step; the image is a folder, as there is no engine."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets
from build import ProjectBuilder
from build.env import DefaultIsolatedEnv
from pyproject_hooks import quiet_subprocess_runner

from realtime.conf import conf
from tests.blocks import titled
from tests.dockerfile import Image, lineage, parse
from tests.e2e.harness import ROOT, Process, Stack
from tests.packages.building import copy_of_the_project

pytestmark = pytest.mark.slow

PAGE = titled("deployment.md")
NAMESPACE = """
from realtime.protocol.namespaces import THREAD, Namespace

DESK = Namespace(
    name="desk", roles=("agent",), kinds=(THREAD,), policies={"thread": "support.policy.open_threads"}
)
"""
SETTINGS = """
from realtime.settings.sockets import *

REALTIME = {{**REALTIME, "NAMESPACES": [*{shipped!r}, "support.namespace.DESK"]}}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with DefaultIsolatedEnv() as environment:
        source = copy_of_the_project(folder / "source")
        builder = ProjectBuilder.from_isolated_env(environment, source, quiet_subprocess_runner)
        environment.install(builder.build_system_requires)
        return Path(builder.build("wheel", folder))


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image `realtime-sockets`: its packages are those of this environment, and the wheel."""
    image = Image(tmp_path_factory.mktemp("image"))
    environment = image.path("/opt/venv")
    venv.create(environment, with_pip=False)
    [site] = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(str(Path(websockets.__file__).parents[1]))
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install"]
    subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel], check=True)
    image.take(lineage(parse((ROOT / "Dockerfile").read_text()), "sockets"), ROOT)
    return image


@pytest.fixture(scope="module")
def image(base: Image, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image of the recipe."""
    context = tmp_path_factory.mktemp("context")
    files = {**PAGE, "support/namespace.py": NAMESPACE, "support/__init__.py": ""}
    files["support/settings.py"] = SETTINGS.format(shipped=[*conf().namespaces])
    for name, text in files.items():
        (context / name).parent.mkdir(exist_ok=True)
        (context / name).write_text(text)
    [stage] = parse(PAGE["Dockerfile"]).values()
    assert stage.base == "realtime-sockets"
    base.take(stage.steps, context)
    return base


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, redis_url) as stack:
        yield stack


def run(stack: Stack, image: Image, *command: str) -> Process:
    """Start a container."""
    script, *arguments = command
    paths = image.seen_from_here(os.environ["PATH"])
    env = {**stack.env, **paths, "SOCKETS_PORT": str(stack.port)}
    line = [str(image.path("/opt/venv/bin") / script), *arguments]
    log = stack.directory / f"{len(stack.processes)}.log"
    process = Process(command[1], line, env, log, image.path("."))
    stack.processes.append(process)
    return process.wait_for()


async def test_image_delivers_the_events_of_the_product_and_asks_its_policy(stack: Stack, image: Image):
    assert image.command == ["realtime", "sockets"]
    run(stack, image, *image.command)
    run(stack, image, "realtime", "bridge")
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": "42"})
        stack.add("ticket:escalated", {"thread_id": "42"})
        await client.expect("ticket:escalated", thread_id="42")
        refused = await client.ask("join:thread", {"thread_id": "archived-1"})
        assert refused["data"]["code"] == "forbidden"
    assert stack.dead_letters() == []


async def test_image_serves_a_namespace_of_the_product_with_its_settings(stack: Stack, image: Image):
    run(stack, image, *image.command, "--settings", "support.settings", "--workers", "2")
    async with stack.client("desk", role="agent") as client:
        await client.call("join:thread", {"thread_id": "42"})
    async with stack.client("hub"):
        pass


def test_image_runs_nothing_of_this_checkout(image: Image):
    python = image.path("/opt/venv/bin/python")
    code = "import realtime, support.events; print(realtime.__file__); print(support.events.__file__)"
    env = {**image.seen_from_here(os.environ["PATH"]), "DJANGO_SETTINGS_MODULE": "realtime.settings.sockets"}
    done = subprocess.run([python, "-c", code], env=env, cwd="/", capture_output=True, text=True, check=True)
    assert all(line.startswith(str(image.root)) for line in done.stdout.splitlines())
