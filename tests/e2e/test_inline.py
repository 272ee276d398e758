"""Everything in one process, for development: a project's pages, the sockets and, inline, the bridge and the relays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT, SIGKILL

import pytest

from tests.blocks import only
from tests.e2e.harness import Process, eventually, free_port, unique
from tests.e2e.project import Project

ASGI = only("commands.md", "python", "with_sockets(")
"""The `asgi.py` of the documentation."""
MESSAGE = '{"thread_id": "42", "message_id": "1", "body": "from a shell"}'
OUTBOX = """
INSTALLED_APPS += ["realtime.outbox"]
DATABASES["archive"] = {**DATABASES["default"], "NAME": BASE_DIR / "archive.sqlite3"}
DATABASES["reports"] = {**DATABASES["default"], "NAME": BASE_DIR / "reports.sqlite3"}
"""
DIE = """
import os, signal, sys, django
django.setup()
from django.db import transaction
from realtime.publisher import publish
using, number = sys.argv[1:]
with transaction.atomic(using=using):
    transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL), using=using)
    data = {"thread_id": "42", "message_id": number, "body": "from a process that was killed"}
    publish("thread:message", data, using=using)
"""
LEFT = """
import django
django.setup()
from realtime.outbox.models import OutboxMessage
print(*[OutboxMessage.objects.using(alias).count() for alias in ("default", "archive")])
"""
SERVERS = {
    "runserver": ("manage.py", "runserver"),
    "daphne": ("-m", "daphne", "team.asgi:application", "--port"),
    "uvicorn": ("-m", "uvicorn", "team.asgi:application", "--port"),
}


@pytest.fixture
def project(redis_url: str, tmp_path: Path) -> Iterator[Project]:
    with Project(tmp_path, redis_url, REALTIME_INLINE="1") as project:
        project.write("asgi.py", ASGI)
        yield project


def serve(project: Project, server: str, port: int, **env: str) -> Process:
    process = project.start(server, *SERVERS[server], str(port), ready="", **env)
    return process.wait_until_listening(port)


async def assert_messages_arrive(project: Project, port: int) -> None:
    """From a view and from a shell, to a client that has connected."""
    async with project.client("hub", port=port) as client:
        await client.call("join:thread", {"thread_id": "42"})
        assert (await project.http("GET", "/say/", port=port)).body == b"said"
        await client.expect("thread:message", body="from a view")
        shell = ("manage.py", "publish", "thread:message", MESSAGE)
        done = await asyncio.to_thread(project.run, *shell)
        assert (done.returncode, done.stderr) == (0, "")
        await client.expect("thread:message", body="from a shell")


def traces(project: Project) -> tuple[bool, int]:
    """What Redis holds of the processes: whether a bridge leads or is taken to, and how many instances there are."""
    return project.redis.exists(project.key("lease:bridge")) == 1, project.redis.hlen(
        project.key("instances")
    )


def interrupt(process: Process) -> None:
    """Ctrl-C in a terminal: it reaches the reloader and the server that it has started."""
    os.killpg(process.pid, SIGINT)
    process.wait()


@pytest.mark.parametrize(
    "server", ["runserver", *(pytest.param(name, marks=pytest.mark.slow) for name in ("daphne", "uvicorn"))]
)
async def test_one_process_serves_pages_and_sockets_and_delivers(project: Project, server: str):
    port = free_port()
    process = serve(project, server, port)
    await assert_messages_arrive(project, port)
    authorization = ("Authorization", f"Bearer {project.token(unique('u'))}")
    assert (await project.http("GET", "/hub/", [authorization], port=port)).status == 204
    assert (await project.http("GET", "/readyz", port=port)).status == 200
    assert (
        await project.http("GET", "/hub/", [("Accept", "text/html,*/*")], port=port)
    ).body == b"a page of the team"
    assert (await project.http("GET", "/nowhere/", port=port)).status == 404
    assert (await project.handshake("/elsewhere/", port=port)).status == (404 if server == "uvicorn" else 403)
    assert traces(project) == (True, 1)
    interrupt(process)
    assert traces(project) == (False, 0)


async def test_operator_and_presence_work_in_one_process(project: Project):
    port, user = free_port(), unique("u")
    serve(project, "runserver", port)
    async with project.client("hub", port=port) as watching, project.client("hub", user, port=port) as client:
        await watching.expect("attendant:online", user_id=user)
        project.add("user:disconnect", {"user_id": user, "namespace": "hub"})
        await client.expect_close()
    assert project.dead_letters() == []


@pytest.mark.slow
async def test_reloader_starts_a_new_process_that_delivers(project: Project):
    port = free_port()
    process = serve(project, "runserver", port)
    await assert_messages_arrive(project, port)
    with (project.folder / "team" / "urls.py").open("a") as urls:
        urls.write('urlpatterns.append(path("new/", lambda request: HttpResponse("new")))\n')
    process.wait_for("changed, reloading")

    async def is_new() -> bool:
        try:
            return (await project.http("GET", "/new/", port=port)).body == b"new"
        except OSError:
            return False

    await eventually(is_new)
    await assert_messages_arrive(project, port)
    assert traces(project) == (True, 1)
    interrupt(process)
    assert traces(project) == (False, 0)
    assert "never" not in process.output
    assert "pending" not in process.output


@pytest.fixture
def with_outbox(project: Project) -> Project:
    """The project with the outbox in its settings, not migrated yet, and three databases."""
    settings = project.folder / "team" / "settings.py"
    settings.write_text(settings.read_text() + OUTBOX)
    project.env["DJANGO_SETTINGS_MODULE"] = "team.settings"
    return project


def migrate(project: Project, database: str = "default") -> None:
    done = project.run("manage.py", "migrate", "--verbosity", "0", "--database", database)
    assert (done.returncode, done.stderr) == (0, "")


async def leave_behind(project: Project, number: str, using: str = "default") -> None:
    """Publish in a process that is killed between its commit and Redis."""
    done = await asyncio.to_thread(project.run, "-c", DIE, using, number)
    assert done.returncode == -SIGKILL, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
async def test_process_relays_what_others_have_left_in_every_outbox(with_outbox: Project, server: str):
    project, port = with_outbox, free_port()
    for database in ("default", "archive"):
        migrate(project, database)
    process = serve(project, server, port)
    async with project.client("hub", port=port) as client:
        await client.call("join:thread", {"thread_id": "42"})
        for number, database in (("1", "default"), ("2", "archive")):
            await leave_behind(project, number, database)
            await client.expect("thread:message", message_id=number)
        assert [frame["data"]["message_id"] for frame in client.received("thread:message")] == ["1", "2"]

        async def is_counted() -> bool:
            metrics = (await project.http("GET", "/metrics", port=port)).body
            return b'\nrealtime_outbox_sent_total{database="archive"} 1.0\n' in metrics

        await eventually(is_counted)
    interrupt(process)
    assert project.run("-c", LEFT).stdout == "0 0\n"
    assert "outbox" not in process.output


@pytest.mark.slow
async def test_missing_table_is_one_line_and_found_once_it_is_there(with_outbox: Project):
    project, port = with_outbox, free_port()
    process = serve(project, "runserver", port)
    async with project.client("hub", port=port) as client:
        process.wait_for(" WARNING realtime.outbox.inline  outbox: the database 'default' has no table")
        await client.call("join:thread", {"thread_id": "42"})
        await asyncio.to_thread(migrate, project)
        await leave_behind(project, "1")
        await client.expect("thread:message", message_id="1")
    interrupt(process)
    assert process.output.count("run `migrate` first") == 1, process.output


@pytest.mark.slow
async def test_database_that_cannot_be_used_is_one_line_and_holds_up_no_other(with_outbox: Project):
    project, port = with_outbox, free_port()
    settings = project.folder / "team" / "settings.py"
    settings.write_text(
        f'{settings.read_text()}\nDATABASES["archive"] = {{"ENGINE": "team.no_such_backend"}}\n'
    )
    migrate(project)
    process = serve(project, "daphne", port)
    async with project.client("hub", port=port) as client:
        process.wait_for("outbox: the database 'archive' is not relayed: ")
        await client.call("join:thread", {"thread_id": "42"})
        await leave_behind(project, "1")
        await client.expect("thread:message", message_id="1")
    assert process.output.count("is not relayed") == 1


@pytest.mark.slow
async def test_several_such_processes_deliver_every_message_once(project: Project):
    ports = [free_port(), free_port()]
    processes = [serve(project, "daphne", ports[0]), serve(project, "uvicorn", ports[1])]
    async with project.client("hub", port=ports[0]) as one, project.client("hub", port=ports[1]) as two:
        for number, leaving in enumerate([None, processes[0]]):
            for client in (one, two):
                if client.close_code is None:
                    await client.call("join:thread", {"thread_id": "42"})
            if leaving is not None:
                leaving.stop()
            project.add("thread:message", {"thread_id": "42", "message_id": str(number), "body": "hi"})
            await two.expect("thread:message", message_id=str(number))
        assert [frame["data"]["message_id"] for frame in two.received("thread:message")] == ["0", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_endpoints_need_no_urls_of_the_project(project: Project, server: str):
    project.write(
        "settings.py",
        (project.folder / "team/settings.py").read_text() + '\nROOT_URLCONF = "team.raising_urls"\n',
    )
    port = free_port()
    serve(project, server, port)
    for path in ("/healthz", "/readyz", "/metrics", "/asyncapi.json"):
        assert (await project.http("GET", path, port=port)).status == 200, path
    assert (await project.http("GET", "/hub/", port=port)).error["code"] == "token_missing"
    async with project.client("hub", port=port):
        pass


@pytest.mark.slow
async def test_team_keeps_its_own_paths_and_sockets(project: Project):
    project.write(
        "asgi.py",
        ASGI.replace("get_asgi_application())", "get_asgi_application(), websocket=echo, endpoints=False)")
        + """

async def echo(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": scope["path"]})
    await send({"type": "websocket.close"})
""",
    )
    text = (project.folder / "team/asgi.py").read_text()
    head, application, echo = text.partition("application = ")
    line, _, rest = echo.partition("\n")
    project.write("asgi.py", f"{head}{rest}\n\n{application}{line}\n")
    with (project.folder / "team" / "urls.py").open("a") as urls:
        urls.write('urlpatterns.append(path("healthz", lambda request: HttpResponse("fine")))\n')
    port = free_port()
    serve(project, "daphne", port)
    assert (await project.http("GET", "/healthz", port=port)).body == b"fine"
    assert (await project.http("GET", "/metrics", port=port)).status == 404
    assert (await project.http("GET", "/hub/", port=port)).error["code"] == "token_missing"
    assert (await project.handshake("/elsewhere/", port=port)).status == 101
    await assert_messages_arrive(project, port)


@pytest.mark.slow
async def test_server_below_a_prefix_serves_the_sockets_there_as_it_does_the_pages(project: Project):
    port = free_port()
    prefixed = (*SERVERS["uvicorn"][:-1], "--root-path", "/support", "--port")
    project.start("uvicorn", *prefixed, str(port), ready="").wait_until_listening(port)
    await assert_messages_arrive(project, port)  # the proxy has taken the prefix away
    assert (await project.http("GET", "/readyz", port=port)).status == 200
    assert (await project.http("GET", "/hub/", port=port)).error["code"] == "token_missing"


@pytest.mark.slow
async def test_without_inline_a_bridge_delivers(project: Project):
    port = free_port()
    serve(project, "daphne", port, REALTIME_INLINE="0")
    async with project.client("hub", port=port):
        assert traces(project) == (False, 1)
        project.start("bridge", "-m", "realtime", "bridge", "--settings", "team.settings")
        await assert_messages_arrive(project, port)


def test_wrong_value_is_said_when_the_application_is_made(project: Project):
    done = project.run("-c", "import team.asgi", REALTIME_INLINE="perhaps")
    assert "ImproperlyConfigured: REALTIME['INLINE']: Expected `bool`, got 'perhaps'" in done.stderr


@pytest.mark.parametrize("module", ["team.asgi", "realtime.asgi"])
def test_application_is_not_made_with_what_would_refuse_every_client(project: Project, module: str):
    project.write(
        "wrong.py",
        """
        from team.settings import *

        INSTALLED_APPS.remove("realtime")
        REALTIME["EVENTS"] = ["team.nowhere"]
        REALTIME["HUB_THREAD_POLICY"] = "team.nowhere.policy"
        SIMPLE_JWT["ALGORITHM"] = "HS257"
        """,
    )
    done = project.run("-c", f"from {module} import application", DJANGO_SETTINGS_MODULE="team.wrong")
    assert done.returncode == 1
    assert "realtime.E004: REALTIME['EVENTS']: cannot import 'team.nowhere'" in done.stderr
    assert "realtime.E005: REALTIME['HUB_THREAD_POLICY']: cannot import 'team.nowhere.policy'" in done.stderr
    assert "realtime.E009: expected a known JWT_ALGORITHM, got 'HS257'" in done.stderr


def test_application_may_be_made_with_a_channel_layer_in_memory(project: Project):
    layer = '{"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}'
    project.write("tests.py", f"from team.settings import *\n\nCHANNEL_LAYERS = {layer}\n")
    done = project.run("-c", "import team.asgi", DJANGO_SETTINGS_MODULE="team.tests")
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_module_chooses_no_settings(project: Project):
    code = (
        "import os; from realtime.asgi import with_sockets; print(os.environ.get('DJANGO_SETTINGS_MODULE'))"
    )
    assert project.run("-c", code).stdout == "None\n"
