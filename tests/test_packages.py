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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4
from zipfile import ZipFile

import pytest
import redis
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


def test_installed_package_writes_nothing_beside_its_code(installed: Path, tmp_path: Path, redis_url: str):
    [site] = installed.parents[1].glob("lib/python*/site-packages")
    env = {**example("web"), "REDIS_URL": redis_url, "SOCKETS_PORT": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    del env["DATABASE_URL"], env["DJANGO_SETTINGS_MODULE"]
    before = files_of(site)
    for command in ("check", "migrate", "collectstatic --noinput"):
        subprocess.run(
            [installed, installed.parents[2] / "manage.py", *command.split()],
            cwd=tmp_path,
            env=env,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    with subprocess.Popen(
        [installed, installed.parents[2] / "manage.py", "runsockets"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
        server.terminate()
    assert files_of(site) == before
    assert {path.name for path in tmp_path.iterdir()} == {"db.sqlite3", "static"}


def files_of(folder: Path) -> dict[str, int]:
    """The files below a folder, by the time of their last change."""
    return {
        str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts
    }


# --- In a team's own project, without extras ---------------------------------------------------------


@dataclass
class Backbone:
    """A new environment with the wheel alone, and a project made by `django-admin startproject`."""

    python: Path
    folder: Path
    redis_url: str
    prefix: str

    def manage(self, *command: str, apps: str = "realtime") -> subprocess.CompletedProcess[str]:
        """Run a command of the project with these apps, besides Django's."""
        env = {"APPS": apps, "REDIS_URL": self.redis_url, "REALTIME_PREFIX": self.prefix}
        return subprocess.run(
            [self.python, "manage.py", *command],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], **env},
            capture_output=True,
            text=True,
            check=False,
        )

    def succeed(self, *command: str, apps: str = "realtime") -> str:
        """What a command prints that succeeds without a warning."""
        done = self.manage(*command, apps=apps)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture(scope="module")
def environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip(python), "install", "--quiet", built.wheel], check=True, capture_output=True)
    return python


def pip(python: Path) -> list[str | Path]:
    """The pip that runs these tests, at work in another environment: to install it there takes its time."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]


@pytest.fixture(scope="module")
def backbone(environment: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("project")
    subprocess.run([environment, "-m", "django", "startproject", "shop", folder], check=True)
    with (folder / "shop" / "settings.py").open("a") as settings:
        settings.write("import os\nINSTALLED_APPS += os.environ['APPS'].split()\n")
    return Backbone(environment, folder, redis_url, f"b{uuid4().hex[:8]}")


def test_plain_installation_is_small(environment: Path):
    listed = "from importlib.metadata import distributions as d; print(*(each.name.lower() for each in d()))"
    names = subprocess.run([environment, "-c", listed], capture_output=True, text=True, check=True).stdout
    ours = {"asgiref", "django", "hiredis", "msgspec", "realtime-sockets", "redis", "sqlparse"}
    assert {*names.split()} == ours | (
        {"typing_extensions"} & {*names.split()}  # Python 3.11's, on some versions of redis-py
    )


PUBLISHING = """
from django.db import transaction
from realtime.publisher import publish
publish("thread:message", {"thread_id": 42, "message_id": 7})
with transaction.atomic():
    publish("chat:accepted", {"thread_id": 42, "attendant_id": 7, "user_id": 9})
    publish("queue:taken", {"item_id": 5})
"""


def test_backbone_publishes_without_a_setting(backbone: Backbone):
    assert "no issues" in backbone.succeed("check")
    backbone.succeed("shell", "-c", PUBLISHING)
    entries = redis.Redis.from_url(backbone.redis_url).xlen(f"{backbone.prefix}:stream")
    assert entries == 3


def test_backbone_hears_nothing_of_other_sides(backbone: Backbone):
    done = backbone.manage("check", "--deploy", apps="realtime presence")
    assert done.returncode == 0
    assert "security.W" in done.stderr
    assert "realtime." not in done.stderr


PAGES = """
from django.contrib.auth.models import User
from django.test import Client
from django.test.utils import setup_test_environment
from django.urls import reverse

setup_test_environment()
client = Client()
client.force_login(User.objects.create_superuser("ana"))
names = ("presencerecord", "presencetransition", "live", "availability", "deadletter")
paths = [reverse(f"admin:presence_{name}_changelist") for name in names]
for path in ("/admin/", *paths, paths[2] + "rooms/", paths[2] + "instances/"):
    answer = client.get(path, follow=True)
    print(path, answer.status_code, len(answer.context["messages"]))
"""


def test_presence_works_in_a_project_without_other_settings(backbone: Backbone):
    assert "No changes" in backbone.succeed("makemigrations", "--check", apps="presence")
    backbone.succeed("migrate", "--verbosity", "0", apps="presence")
    printed = backbone.succeed("shell", "-c", PAGES, apps="presence").splitlines()
    pages = [line.split() for line in printed if line.startswith("/admin/")]
    assert len(pages) == 8
    assert {(status, messages) for _, status, messages in pages} == {("200", "0")}


PINNED = ("uvicorn==0.30.6", "websockets==12.0", "redis==5.2.1", "celery==5.5.3", "kombu[redis]==5.5.4")
"""What a project may have pinned for itself."""


def test_project_keeps_the_versions_that_it_has_pinned(environment: Path, built: Built):
    """With all extras at once, and so with any of them."""
    command = [*pip(environment), "install", "--quiet", "--dry-run", "--ignore-installed"]
    done = subprocess.run(
        [*command, f"{built.wheel}[asgi,daphne,testing,otel]", *PINNED],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_application_without_its_extra_is_one_sentence(backbone: Backbone):
    for name in ("application", "with_sockets(None)"):
        done = backbone.manage("shell", "-c", f"from realtime import asgi; asgi.{name}")
        last = done.stderr.splitlines()[-1]
        assert "ImproperlyConfigured: realtime.asgi needs pip install 'realtime-sockets[asgi]'" in last


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("runsockets", "server"),
        ("runbridge", "asgi"),
        ("issuetoken --user 7 --role attendant", "asgi"),
        ("runweb", "web"),
    ],
    ids=str,
)
def test_command_without_its_extra_says_how_to_install_it(backbone: Backbone, command: str, extra: str):
    done = backbone.manage(*command.split())
    assert done.returncode == 2
    expected = (
        f"CommandError: {command.split()[0]} needs pip install 'realtime-sockets[{extra}]'; not installed: "
    )
    assert re.fullmatch(re.escape(expected) + r".+\n", done.stderr)


def test_app_without_its_extra_is_one_message(backbone: Backbone):
    done = backbone.manage("check", apps="realtime realtime.server")
    assert re.findall(r"realtime\.[EWI]\d+", done.stderr) == ["realtime.E031"]
    assert "pip install 'realtime-sockets[asgi]'" in done.stderr


@pytest.fixture
def other(environment: Path) -> Iterator[str]:
    """Another distribution, which has installed a file into our package."""
    [site] = environment.parents[1].glob("lib/python*/site-packages")
    metadata = site / "other_sockets-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-sockets\nVersion: 1.0\n")
    (metadata / "RECORD").write_text("realtime/__init__.py,,\nrealtime/channel.py,,\n")
    (site / "realtime" / "channel.py").write_text("")
    yield "other-sockets"
    shutil.rmtree(metadata)
    (site / "realtime" / "channel.py").unlink()


def test_distribution_that_wrote_into_our_package_is_named(backbone: Backbone, other: str):
    done = backbone.manage("check")
    assert re.findall(r"realtime\.[EWI]\d+", done.stderr) == ["realtime.E030"]
    assert f"the distribution '{other}' has a package `realtime`, too" in done.stderr
    assert backbone.manage("publish", "queue:updated").returncode == 2


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
