"""The test tools as another team has them: a project of its own, with pytest and `manage.py test`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.testing.project import PAGE, Project

AUTO = ("-o", "asyncio_mode=auto")
STRICT = ("-o", "asyncio_mode=strict")
DJANGO = ("--ds", "shop.settings")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with the files of docs/testing.md."""
    project = Project(tmp_path_factory.mktemp("team") / "project")
    for title, text in PAGE.items():
        project.write(title, text)
    return project


def test_page_as_printed_with_pytest(project: Project):
    """With the tests that `manage.py test` runs."""
    project.pytest(*DJANGO, *STRICT, "-o", "python_files=test*.py", "support").assert_passed(16)


def test_page_as_printed_with_manage(project: Project):
    done = project.run(sys.executable, "-W", "error", "manage.py", "test", "--pattern", "tests*.py")
    assert done.status == 0, done.output
    assert "Ran 5 tests" in done.output, done.output


OWN = """
import pytest
from realtime.client import CallFailed
from realtime.publisher import apublish

@pytest.fixture(params=["realtime_server", "realtime_in_memory"])
def system(request):
    return request.getfixturevalue(request.param)

async def test_own_namespace_event_and_policy(system):
    boss = await system.client(user="b-1", role="supervisor", board="7")
    assert boss.ready["namespace"] == "ops"
    assert boss.ready["heartbeat_interval"] == 20  # as conftest.py says
    await boss.call("join", {"room": "board:7"})
    with pytest.raises(CallFailed, match="forbidden"):
        await boss.call("join", {"room": "board:8"})
    await apublish("board:moved", {"board_id": 7})
    assert (await boss.expect("board:moved", board_id=7)).room == "board:7"
"""


def test_own_namespaces_events_and_policies_in_auto_mode_with_workers(project: Project):
    project.write("own/test_own.py", OWN)
    project.pytest(*DJANGO, *AUTO, "-n", "2", "own").assert_passed(2)


SCOPE = """
ports = set()


class TestOne:
    def test_one(self, realtime_server):
        ports.add(realtime_server.port)

    def test_two(self, realtime_server):
        ports.add(realtime_server.port)


class TestOther:
    def test_one(self, realtime_server):
        assert len(ports) == 1
        assert realtime_server.port not in ports
"""


@pytest.mark.slow
def test_server_lives_as_long_as_the_option_says(project: Project):
    project.write("scope/test_scope.py", SCOPE)
    options = ("-p", "no:randomly", "-o", "realtime_server_scope=class")
    project.pytest(*DJANGO, *options, "scope").assert_passed(3)


@pytest.mark.slow
def test_option_that_is_not_one_is_said(project: Project):
    project.write("scope/test_scope.py", SCOPE)
    done = project.pytest(*DJANGO, "-o", "realtime_server_scope=ever", "scope")
    assert done.status != 0
    assert "realtime_server_scope must be one of session, package" in done.output
    assert "got 'ever'" in done.output


@pytest.mark.slow
def test_server_with_wrong_settings_says_what_is_wrong(project: Project):
    project.write(
        "shop/wrong.py", 'from shop.settings import *\nREALTIME["NAMESPACES"] = ["shop.nowhere.OPS"]\n'
    )
    project.write("wrong/test_wrong.py", "def test_it(realtime_server):\n    pass\n")
    done = project.pytest("--ds", "shop.wrong", "wrong")
    assert done.status == 1
    assert "cannot import 'shop.nowhere.OPS'" in done.output
    assert "/realtime/testing/" not in done.output


WITHOUT = """
from importlib.metadata import PackageNotFoundError
from realtime import extras

def version(name):
    if name in {"channels", "fakeredis", "websockets"}:
        raise PackageNotFoundError(name)
    return "1000"

extras.version = version
"""
BARE = """
def test_memory(realtime_in_memory):
    pass

def test_server(realtime_client):
    pass

def test_token(issue_token):
    pass
"""


def test_packages_that_are_not_installed_are_named(project: Project):
    project.write("bare/conftest.py", WITHOUT)
    project.write("bare/test_bare.py", BARE)
    done = project.pytest(*DJANGO, "bare")
    for extra, packages in (
        ("testing", "channels, fakeredis"),
        ("server", "channels, websockets"),
        ("asgi", "channels"),
    ):
        assert f"needs pip install 'realtime-sockets[{extra}]'; not installed: {packages}\n" in done.output
    assert "Traceback" not in done.output
    assert "/realtime/testing/" not in done.output


@pytest.mark.slow
def test_server_that_ends_during_a_test_is_told(project: Project):
    lines = (
        "import os, signal",
        "def test_it(realtime_server):",
        "    for process in realtime_server.processes:",
        "        os.kill(process.pid, signal.SIGKILL)",
        "        process.wait()",
    )
    project.write("ending/test_ending.py", "\n".join(lines))
    done = project.pytest(*DJANGO, "ending")
    assert done.status == 1
    assert "bridge has ended with -9" in done.output


@pytest.mark.slow
def test_given_redis_is_used_and_left_clean(project: Project, redis_url: str):
    lines = (
        "def test_it(realtime_client, realtime_server):",
        f"    assert realtime_server.redis_url == {redis_url!r}",
        "    realtime_client.sync(user=1, role='attendant').expect('attendant:online', user_id=1)",
    )
    project.write("given/test_given.py", "\n".join(lines))
    project.pytest(*DJANGO, "given", TEST_REDIS_URL=redis_url).assert_passed(1)
    with redis.Redis.from_url(redis_url) as client:
        assert [*client.scan_iter("test-*")] == []


@pytest.mark.slow
def test_no_process_outlives_pytest(project: Project):
    lines = (
        "import os, signal",
        "def test_it(realtime_server):",
        "    for process in realtime_server.processes:",
        "        print('pid', process.pid)",
        "    os.kill(os.getpid(), signal.SIGKILL)",
    )
    project.write("killed/test_killed.py", "\n".join(lines))
    done = project.pytest(*DJANGO, "-s", "killed")
    pids = [line.split()[1] for line in done.output.splitlines() if line.startswith("pid")]
    assert len(pids) == 2, done.output
    subprocess.run(
        ["timeout", "30", "tail", *[f"--pid={pid}" for pid in pids], "-f", "/dev/null"], check=True
    )


FAILING = """
def test_server(realtime_client):
    client = realtime_client.sync(user=1, role="attendant")
    client.expect("thread:message", timeout=0.1)

async def test_memory(realtime_in_memory):
    client = await realtime_in_memory.client(user=1, role="attendant")
    await client.expect("thread:message", timeout=0.1)

def test_refused(realtime_client, issue_token):
    realtime_client.sync(token=issue_token(user=1, role="customer"), namespace="hub")

def test_recorder(published):
    published.assertPublished("thread:message", thread_id=1)
"""


@pytest.mark.slow
def test_failure_shows_the_line_of_the_test_and_no_token(project: Project):
    project.write("failing/test_failing.py", FAILING)
    done = project.pytest(*DJANGO, *AUTO, "failing")
    assert "4 failed" in done.output, done.output
    assert "realtime/testing/" not in done.output, done.output
    assert "thread:message did not come within 0.1 s." in done.output
    assert "403 forbidden_role" in done.output
    assert "eyJ" not in done.output


# --- Where it is not used -------------------------------------------------------------------------------


UNUSED = """
import sys

def test_nothing_was_imported():
    heavy = {"django", "redis", "channels", "asgiref", "msgspec", "websockets", "fakeredis", "uvicorn"}
    assert not heavy & sys.modules.keys()
    assert [name for name in sys.modules if name.startswith("realtime")] == %s
"""
OTHERS = ("-p", "no:django", "-p", "no:playwright", "-p", "no:hypothesispytest", "-p", "no:randomly")


@pytest.fixture
def plain(tmp_path: Path) -> Project:
    """A project without Django."""
    return Project(tmp_path / "plain")


@pytest.mark.parametrize(
    ("options", "loaded"),
    [
        ((), ["realtime", "realtime.testing", "realtime.testing.plugin"]),
        (("-p", "no:realtime"), []),
    ],
    ids=["loaded", "disabled"],
)
def test_plugin_costs_nothing_where_it_is_not_used(
    plain: Project, options: tuple[str, ...], loaded: list[str]
):
    plain.write("test_plain.py", UNUSED % loaded)
    plain.pytest(*OTHERS, *options, "test_plain.py").assert_passed(1)


@pytest.mark.parametrize("file", ["realtime/__init__.py", "realtime.py"])
def test_package_of_the_same_name_harms_no_run_that_uses_nothing_of_ours(plain: Project, file: str):
    plain.write(file, "raise RuntimeError('imported by pytest')\n")
    plain.write("test_plain.py", "def test_it():\n    pass\n\ndef test_ours(published):\n    pass\n")
    output = plain.pytest("-p", "no:django", "test_plain.py").output
    assert "1 passed, 1 error in" in output, output
    assert "fixture 'published' not found" in output


def test_fixture_without_settings_says_what_is_missing(plain: Project):
    plain.write(
        "test_plain.py", "def test_it(published):\n    pass\n\ndef test_server(realtime_client):\n    pass\n"
    )
    done = plain.pytest("-p", "no:django", "test_plain.py")
    assert done.status == 1
    said = "The fixtures of realtime need the settings of your project: Requested setting"
    assert done.output.count(said) >= 2, done.output
    assert "DJANGO_SETTINGS_MODULE" in done.output
    assert "During handling" not in done.output


@pytest.mark.slow
def test_fixtures_work_without_the_plugin_of_django(plain: Project):
    plain.write("support/views.py", PAGE["support/views.py"])
    lines = (
        "from realtime.publisher import publish",
        "def test_it(published):",
        "    publish('queue:updated', {})",
        "    published.assertPublished('queue:updated')",
    )
    plain.write("test_plain.py", "\n".join(lines))
    plain.pytest("-p", "no:django", "test_plain.py", DJANGO_SETTINGS_MODULE="shop.settings").assert_passed(1)
