"""Every command: what it prints, and one sentence instead of a stack trace when it cannot do it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import pytest
from django.core.management import load_command_class

from realtime.auth.verification import verify
from tests.e2e.harness import PATIENCE, Stack, free_port, python, unique

MESSAGE = '{"thread_id": "42", "message_id": "1"}'
ED25519_PUBLIC = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""
NOBODY = "redis://127.0.0.1:1/0"
KEYS = {"SECRET_KEY": "k" * 50, "JWT_SIGNING_KEY": "a key for the commands of these tests"}

Manage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("JWT_", "REALTIME_"))
    }
    inherited.pop("DJANGO_SETTINGS_MODULE", None)
    database = tmp_path_factory.mktemp("commands") / "db.sqlite3"
    return {**inherited, **KEYS, "DEBUG": "1", "REDIS_URL": NOBODY, "DATABASE_URL": f"sqlite:///{database}"}


@pytest.fixture(scope="module")
def manage(environment: dict[str, str]) -> Manage:
    """`manage(command, arguments…, NAME=value…)`, run to its end."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return python("manage.py", *arguments, env={**environment, **env})

    return run


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, redis_url) as stack:
        yield stack


# --- Wrong arguments ------------------------------------------------------------------------------------

ATTENDANT = ("--user", "7", "--role", "attendant")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("runsockets", "--port", "http"), "argument --port: invalid int value: 'http'"),
        (("runsockets", "--port", "65536"), "--port must be between 0 and 65535, got 65536"),
        (("runsockets", "--workers", "0"), "--workers must be at least 1"),
        (("runweb", "--port", "http"), "argument --port: invalid int value: 'http'"),
        (("runweb", "--port", "-1"), "--port must be between 0 and 65535, got -1"),
        (("issuetoken", "--role", "admin"), "the following arguments are required: --user"),
        (("issuetoken", "--user", "7", "--role", "king"), "--role must be one of admin, attendant, customer"),
        (("issuetoken", "--user", "a b", "--role", "admin"), "expected an id of 1-64 characters"),
        (("issuetoken", *ATTENDANT, "--groups", "a:b"), "expected a group name of 1-64 letters"),
        (("issuetoken", *ATTENDANT, "--threads", "4,ü"), "expected an id of 1-64 characters"),
        (("issuetoken", *ATTENDANT, "--ttl", "soon"), "argument --ttl: invalid float value: 'soon'"),
        (("issuetoken", *ATTENDANT, "--ttl", "0"), "--ttl must be more than 0"),
        (("issuetoken", *ATTENDANT, "--ttl", "nan"), "--ttl must be more than 0"),
        (("issuetoken", *ATTENDANT, "--threads", ",".join(map(str, range(2000)))), "the server accepts 8192"),
        (("publish",), "the following arguments are required: event"),
        (("publish", "thread:message", "{"), "the data is not JSON: "),
        (("publish", "thread:message", "[" * 100_000), "the data is not JSON: "),
        (("publish", "thread:message", "[]"), "the data must be a JSON object, got []"),
        (("publish", "thread:message", '{"x": [1, NaN]}'), "data.x[1]: JSON has neither NaN nor Infinity"),
        (
            ("publish", "thread:message", '{"x": %s}' % ("[" * 150 + "]" * 150)),
            "nested more than 100 levels deep",
        ),
        (("publish", "thread:message"), "thread_id: required"),
        (("publish", "thread:massage", MESSAGE), "'thread:massage' is not in the catalogue"),
        (("publish", "heartbeat", "{}"), "heartbeat goes from clients to the server only"),
        (("publish", "thread:message", MESSAGE, "--room", "lobby"), "'lobby' is not a room"),
        (("publish", "thread:message", MESSAGE, "--namespace", "lobby"), "namespaces: "),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_wrong_arguments_are_said_in_one_sentence(arguments: tuple[str, ...], sentence: str, capsys):
    command = load_command_class("realtime", arguments[0])
    with pytest.raises(SystemExit) as end:
        command.run_from_argv(["manage.py", *arguments])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert sentence in printed.err.splitlines()[-1]
    assert printed.out == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("runsockets", "--host", "nowhere.invalid"), "cannot listen on nowhere.invalid:8001: "),
        (("runweb", "--host", "nowhere.invalid"), "cannot listen on nowhere.invalid:8000: "),
        (("publish", "thread:message", MESSAGE), "cannot reach Redis: "),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_reached_is_said_in_one_sentence(
    manage: Manage, arguments: tuple[str, ...], sentence: str
):
    done = manage(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["runsockets", "runweb"])
def test_taken_port_is_said_in_one_sentence(manage: Manage, command: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = manage(command, "--port", str(port))
    assert done.returncode == 2
    assert done.stderr == f"CommandError: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [("LOG_LEVEL", "loud"), ("LOG_FORMAT", "xml"), ("DATABASE_URL", "foo://x"), ("JWT_LEEWAY", "soon")],
)
def test_setting_that_cannot_be_read_is_one_sentence(manage: Manage, name: str, value: str):
    done = manage("check", **{name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"Configuration error: {name} ")
    assert done.stderr.count("\n") == 1


# --- Wrong settings -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "id", "message", "hint"),
    [
        ({"REALTIME_GRACE_PERIOD": "abc"}, "E001", "REALTIME['GRACE_PERIOD']: ", "See docs/settings.md"),
        ({"REALTIME_HEARTBEAT_INTERVAL": "80"}, "E002", "80, 75, 300", "send a heartbeat before"),
        ({"REALTIME_GRACE_PERIOD": "295"}, "E003", "10 + 295, 300", "must outlive the grace period"),
        ({"JWT_SIGNING_KEY": ""}, "E006", "JWT_SIGNING_KEY is not set", "at least 32 random bytes"),
        ({"DEBUG": "0", "JWT_SIGNING_KEY": "development-" + "k" * 32}, "E007", "DEBUG is off", "of your own"),
        ({"DEBUG": "0", "SECRET_KEY": "development-" + "k" * 50}, "E007", "DEBUG is off", "of your own"),
        ({"REDIS_URL": "redis://127.0.0.1:1/1"}, "E016", "names database 1", "Set REALTIME_PREFIX"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("E0") else "",
)
def test_wrong_settings_fail_a_numbered_check_with_a_hint(
    manage: Manage, env: dict[str, str], id: str, message: str, hint: str
):
    """Which checks concern which side is tested in tests/checks/test_sides.py."""
    for command in ("runsockets", "runweb") if id == "E001" else ("runsockets",):
        done = manage(command, **env)
        assert done.returncode != 0
        assert f"(realtime.{id})" in done.stderr
        assert message in done.stderr
        assert hint in done.stderr.partition("HINT:")[2]
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "env", "sentence"),
    [
        ("runsockets", {"DEBUG": "perhaps"}, "DEBUG must be 1 or 0, got 'perhaps'"),
        ("runbridge", {"JWT_LEEWAY": "soon"}, "JWT_LEEWAY must be a number, got 'soon'"),
        ("runweb", {"SECRET_KEY": ""}, "SECRET_KEY is not set; the web side signs sessions with it"),
    ],
)
def test_what_is_not_even_a_setting_is_said_in_one_sentence(
    manage: Manage, command: str, env: dict[str, str], sentence: str
):
    done = manage(command, **env)
    assert done.returncode != 0
    assert done.stderr == f"Configuration error: {sentence}\n"


def test_runweb_needs_the_names_of_its_hosts_unless_it_is_for_development(manage: Manage):
    done = manage("runweb", DEBUG="0", ALLOWED_HOSTS="")
    assert done.returncode == 2
    assert (
        done.stderr
        == "CommandError: ALLOWED_HOSTS is not set: with DEBUG off every request would be refused\n"
    )


# --- What they do ---------------------------------------------------------------------------------------


def test_issuetoken_prints_a_token_and_nothing_else(manage: Manage):
    done = manage(
        "issuetoken",
        *(
            "--user",
            "7",
            "--role",
            "customer",
            "--name",
            "Carla",
            "--groups",
            "sales, vip",
            "--threads",
            "42,43",
        ),
        JWT_SIGNING_KEY=os.environ["JWT_SIGNING_KEY"],
    )
    assert done.returncode == 0
    assert done.stderr == ""
    [token] = done.stdout.splitlines()
    principal = verify(token)
    assert (principal.user_id, principal.role, principal.name) == ("7", "customer", "Carla")
    assert principal.groups == ("sales", "vip")
    assert principal.threads == {"42", "43"}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"JWT_SIGNING_KEY": "junk", "JWT_VERIFYING_KEY": "junk"},
            "JWT_VERIFYING_KEY is not a key for EdDSA",
        ),
        (
            {"JWT_SIGNING_KEY": "junk", "JWT_VERIFYING_KEY": ED25519_PUBLIC},
            "JWT_SIGNING_KEY is not a key that signs with EdDSA",
        ),
        (
            {"JWT_SIGNING_KEY": ED25519_PUBLIC, "JWT_VERIFYING_KEY": ED25519_PUBLIC},
            "JWT_SIGNING_KEY is not a key that signs with EdDSA",
        ),
        ({"JWT_ALGORITHM": "HS257"}, "expected a known JWT_ALGORITHM, got 'HS257'"),
    ],
    ids=["junk", "no private key", "a public key", "no algorithm"],
)
def test_issuetoken_needs_a_key_that_it_can_sign_with(manage: Manage, variables: dict[str, str], said: str):
    done = manage("issuetoken", *ATTENDANT, **{"JWT_ALGORITHM": "EdDSA", **variables})
    assert done.returncode != 0
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr


async def test_publish_delivers_where_it_is_told_to_once_per_id(stack: Stack, manage: Manage):
    stack.start_all()
    options = ("--room", "thread:other", "--namespace", "hub", "--id", unique())
    async with stack.client("hub") as client:
        await client.call("join:thread", {"thread_id": "other"})
        for _ in range(2):
            assert manage("publish", "thread:message", MESSAGE, *options, **stack.env).returncode == 0
        frame = await client.expect("thread:message")
        assert (frame["room"], frame["data"]["thread_id"]) == ("thread:other", "42")
        await client.nothing("thread:message")


@pytest.mark.parametrize("command", ["runsockets", "runbridge", "runrecorder", "runweb"])
@pytest.mark.parametrize("how", [SIGTERM, pytest.param(SIGINT, marks=pytest.mark.slow)])
def test_servers_say_ready_and_stop_calmly(stack: Stack, manage: Manage, command: str, how: Signals):
    ports = {"SOCKETS_PORT": str(stack.port), "WEB_PORT": str(free_port())}
    if command == "runrecorder":
        assert manage("migrate", **stack.env).returncode == 0
    process = stack.start(command, **ports)
    assert process.stop(how) in {0, -how}
    lines = [line for line in process.output.splitlines() if not line.startswith("{")]
    assert lines == ["ready"]


def test_runweb_serves_pages_and_static_files_and_answers_probes_by_address(stack: Stack, manage: Manage):
    assert manage("migrate", **stack.env).returncode == 0
    port = free_port()
    process = stack.start("runweb", WEB_PORT=str(port), ALLOWED_HOSTS="support.example.com")

    def get(path: str, host: str) -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with closing(connection):
            connection.request("GET", path, headers={"Host": host})
            return connection.getresponse().status

    assert get("/healthz", "10.0.0.7") == get("/healthz/", "10.0.0.7") == 200
    assert get("/admin/login/", "support.example.com") == 200
    assert get("/static/admin/css/base.css", "support.example.com") == 200
    assert get("/nowhere/?token=secret", "support.example.com") == 404
    process.stop()
    assert "secret" not in process.output
