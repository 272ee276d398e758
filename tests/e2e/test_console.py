"""The console script: the commands of this project with the settings of any other, run without its checkout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGINT

import pytest

from realtime.auth.verification import verify
from realtime.cli import COMMANDS, main
from tests.e2e.harness import ROOT, Process, free_port, unique
from tests.e2e.project import Project

ATTENDANT = ("--user", "7", "--role", "attendant")
MESSAGE = '{"thread_id": "42", "message_id": "1", "body": "from a shell"}'
ODD = ("--settings", "team.odd")


@pytest.fixture(scope="module")
def project(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with Project(tmp_path_factory.mktemp("console"), redis_url) as project:
        yield project


# --- Help -----------------------------------------------------------------------------------------------


@pytest.fixture
def realtime(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str, str]]:
    """What needs no settings, in this process: status, output and errors."""

    def run(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        return end.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    "arguments", [("--help",), ("-h",), ("help",), ("--settings", "team.settings", "--help")]
)
def test_help_lists_every_command_in_a_line(realtime, arguments: tuple[str, ...]):
    status, text, errors = realtime(*arguments)
    assert (status, errors) == (0, "")
    listed = re.findall(r"(?m)^  (\w+) +(\w.{10,})$", text)
    assert [name for name, _ in listed] == [*COMMANDS, "docs"]
    assert max(map(len, text.splitlines())) <= 120


def test_no_command_is_an_error_that_helps(realtime):
    _, text, _ = realtime("--help")
    assert realtime() == (2, "", text)


def test_version_is_printed(realtime):
    _, text, _ = realtime("--version")
    assert re.fullmatch(r"realtime-sockets (\d+\.\d+\.\d+|\(not installed\))\n", text)


def test_help_of_a_command_names_it_as_it_was_called(project: Project):
    done = project.realtime("sockets", *ODD, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m realtime sockets ")
    assert "--workers" in done.stdout


@pytest.mark.parametrize("name", [*COMMANDS, "pruneoutbox", "generateclient"])
def test_options_of_a_command_are_listed_without_settings(project: Project, name: str):
    done = project.realtime(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m realtime {name} ")
    assert "\noptions:\n" in done.stdout


def test_help_of_docs_is_that_of_all_commands(realtime):
    assert realtime("docs", "--help") == realtime("--help")


# --- What a user can get wrong --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("nonsense", "--settings", "team.settings"),
            "there is no command nonsense; python -m realtime --help lists the commands",
        ),
        (
            ("nonsense",),
            "nonsense is no command of ours, and those of apps are not known: SECRET_KEY is not set",
        ),
        (("--port", "1", "sockets"), "expected a command first, got --port"),
        (("sockets", "--settings"), "argument --settings: expected one argument"),
        (("sockets", "--settings", "nowhere"), "cannot load the settings nowhere: No module named 'nowhere'"),
        (("sockets", "--settings=team.nowhere"), "the settings team.nowhere: No module named 'team.nowhere'"),
        (("bridge", "--settings", "team.missing"), "the settings team.missing: No module named 'nowhere'"),
        (("bridge", "--settings", "team.misspelt"), "NameError: name 'prot' is not defined (/"),
        (("token", "--settings", "team.unfinished"), "SyntaxError: '{' was never closed"),
        (("sockets", "--settings", "team.refusing"), "Configuration error: TEAM_KEY is not set"),
        (("sockets", "--settings", "team.broken_app"), "cannot start with the settings team.broken_app: "),
        (
            ("outbox", "--settings", "team.settings"),
            "needs 'realtime.outbox' in INSTALLED_APPS of team.settings",
        ),
        (
            ("runrecorder", "--settings", "team.settings"),
            "runrecorder needs 'presence' in INSTALLED_APPS of ",
        ),
        (("pruneoutbox", "--settings", "team.settings"), "pruneoutbox needs 'realtime.outbox' in INSTALLED_"),
        (("pruneoutbox",), "Configuration error: SECRET_KEY is not set"),
        (
            ("migrate", "--settings", "team.read_only"),
            "migrate failed: unable to open database file (--trace",
        ),
        (("collectstatic", "--noinput", "--settings", "team.read_only"), "collectstatic failed: [Errno "),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_one_sentence(project: Project, arguments: tuple[str, ...], sentence: str):
    done = project.realtime(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_traceback_is_shown_when_it_is_asked_for(project: Project):
    done = project.realtime("migrate", "--traceback", "--settings", "team.read_only")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (("publish", "thread:message", "{}"), "realtime.settings.sockets"),
        (("web",), "realtime.settings.web"),
        (("check",), "realtime.settings.web"),
        (("nonsense",), "realtime.settings.web"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_error_in_the_folder_of_a_project_names_its_settings(
    project: Project, arguments: tuple[str, ...], module: str
):
    hint = f"The settings were {module}; for those of your project add --settings team.settings"
    assert project.realtime(*arguments).stderr.splitlines()[-1].endswith(hint)


@pytest.mark.slow
def test_error_with_settings_that_were_named_has_no_such_hint(project: Project):
    by_option = project.realtime("web", "--settings", "realtime.settings.web")
    by_environment = project.realtime("web", DJANGO_SETTINGS_MODULE="realtime.settings.web")
    for done in (by_option, by_environment):
        assert done.returncode != 0
        assert "The settings were" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "distribution", "extra"),
    [
        (["sockets", *ODD], "uvicorn", "server"),
        (["bridge", *ODD], "uvloop", "asgi"),
        (["token", *ODD, *ATTENDANT], "pyjwt", "asgi"),
        (["web"], "dj-database-url", "web"),
        (["recorder"], "psycopg", "web"),
        (["sockets"], "channels", "asgi"),
    ],
    ids=["sockets", "bridge", "token", "web", "recorder", "sockets without settings"],
)
def test_missing_extra_is_named(project: Project, arguments: list[str], distribution: str, extra: str):
    """In a checkout, too, of which no package is installed."""
    code = f"""
from importlib import metadata
from realtime import extras
from realtime.cli import main

def version(name):
    if name == {distribution!r}:
        raise metadata.PackageNotFoundError(name)
    return "1000"

extras.version = version
main({arguments!r})
"""
    done = project.run("-c", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"pip install 'realtime-sockets[{extra}]'; not installed: {distribution}" in done.stderr
    assert done.stderr.count("\n") == 1


# --- With the settings of a project ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--settings", "team.odd", "token", *ATTENDANT),
        ("token", "--settings=team.odd", *ATTENDANT),
        ("token", *ATTENDANT, "--settings", "team.odd"),
    ],
)
def test_settings_are_named_anywhere(project: Project, arguments: tuple[str, ...]):
    done = project.realtime(*arguments)
    assert done.stderr == ""
    assert verify(done.stdout.strip()).user_id == "7"


@pytest.mark.slow
def test_settings_are_named_by_the_environment_unless_by_the_option(project: Project):
    assert project.realtime("token", *ATTENDANT, DJANGO_SETTINGS_MODULE="team.odd").returncode == 0
    assert project.realtime("token", *ATTENDANT, *ODD, DJANGO_SETTINGS_MODULE="nowhere").returncode == 0


def start(project: Project, *arguments: str, **env: str) -> Process:
    return project.start(arguments[0], "-m", "realtime", *arguments, **env)


@pytest.mark.slow
def test_log_of_a_project_that_configures_none_has_the_facts(project: Project):
    line = " WARNING realtime.bridge.bridge  redis lost, trying again failures=1 error="
    away = ("bridge", "--settings", "team.away")
    process = project.start("bridge", "-m", "realtime", *away, ready=line)
    process.stop()
    assert f"{line}\"ConnectionError('Error 111 connecting to 127.0.0.1:1." in process.output


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
async def test_sockets_and_bridge_need_nothing_of_the_pages_of_a_project(project: Project, workers: str):
    port = free_port()
    processes = [
        start(project, "bridge", *ODD),
        start(project, "sockets", *ODD, "--port", str(port), "--workers", workers),
    ]
    async with project.client("hub", port=port) as client:
        await client.call("join:thread", {"thread_id": "42"})
        done = project.realtime("publish", "thread:message", MESSAGE, "--settings", "team.settings")
        assert (done.returncode, done.stderr) == (0, "")
        await client.expect("thread:message", body="from a shell")
    await assert_endpoints_answer(project, port)
    # A project may log everything; a token must not be in what it logs (`assert_calm`).
    assert (await project.handshake(f"/hub/?token={project.token()}", port=port)).status == 101
    for process in processes:
        process.stop(SIGINT)
        assert [line for line in process.output.splitlines() if "Traceback" in line or "Error" in line] == []


@pytest.mark.slow
async def test_endpoints_under_daphne_need_nothing_of_the_pages_of_a_project(project: Project):
    port = free_port()
    arguments = ("-m", "daphne", "--port", str(port), "realtime.asgi:application")
    project.start("daphne", *arguments, ready="", DJANGO_SETTINGS_MODULE="team.odd").wait_until_listening(
        port
    )
    await assert_endpoints_answer(project, port)
    async with project.client("hub", port=port):
        pass


async def assert_endpoints_answer(project: Project, port: int) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/asyncapi.json"):
        assert (await project.http("GET", path, port=port)).status == 200, path
    authorization = ("Authorization", f"Bearer {project.token(unique('u'))}")
    assert (await project.http("GET", "/hub/", [authorization], port=port)).status == 204
    assert (await project.http("GET", "/hub/", port=port)).error["code"] == "token_missing"
    assert (await project.http("GET", "/nowhere", port=port)).status == 404


def test_socket_side_has_no_database_with_any_settings(project: Project):
    code = (
        "import sys, os; os.environ['DJANGO_SETTINGS_MODULE'] = 'team.odd'\n"
        "from realtime.asgi import application\n"
        "from django.core.exceptions import ImproperlyConfigured\n"
        "from django.db import connections\n"
        "from team.models import Thread\n"
        "for query in (Thread.objects.count, Thread.objects.using('reports').count):\n"
        "    try:\n"
        "        query()\n"
        "    except ImproperlyConfigured:\n"
        "        print('refused')\n"
    )
    done = project.run("-c", code)
    assert (done.stdout, done.stderr) == ("refused\nrefused\n", "")


@pytest.mark.slow
def test_recorder_and_outbox_run_with_the_settings_of_a_project(project: Project):
    settings = ("--settings", "team.recorded")
    assert project.realtime("migrate", *settings).returncode == 0
    process = start(project, "recorder", *settings)
    process.stop()
    assert process.output == "ready\n"
    assert project.realtime("outbox", *settings).stdout == "relaying\n"


@pytest.mark.slow
def test_check_reports_what_concerns_the_project(project: Project):
    done = project.realtime("check", "--settings", "team.settings")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no issues" in done.stdout


def test_manage_of_a_checkout_is_the_same_script(project: Project):
    done = project.run(str(ROOT / "manage.py"), "token", *ODD, *ATTENDANT)
    assert verify(done.stdout.strip()).role == "attendant"


def test_every_command_is_documented_with_its_settings():
    page = (ROOT / "docs" / "commands.md").read_text()
    documented = re.findall(r"(?m)^\| `(\w+)` \| .*?(\w+)[`\]][^|]*\| `([\w.]+)` \|$", page)
    assert documented == [(name, command.name, command.settings) for name, command in COMMANDS.items()]


@pytest.mark.parametrize("name", COMMANDS)
def test_default_settings_are_those_of_the_command_of_django(name: str):
    from realtime.cli import command_of

    command = COMMANDS[name]
    assert command_of(command.name).settings == command_of(name).settings


def test_script_and_module_are_the_same_function(project: Project, tmp_path: Path):
    """What pip writes for an entry point."""
    script = tmp_path / "realtime"
    script.write_text(
        "import sys\nfrom realtime.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    done = project.run(str(script), "token", *ODD, *ATTENDANT)
    assert verify(done.stdout.strip()).user_id == "7"
    assert done.stderr == ""
    assert project.run(str(script), "--help").stdout.startswith("usage: realtime COMMAND")
