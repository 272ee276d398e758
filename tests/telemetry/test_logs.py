from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import RedisError
from websockets.frames import Frame, Opcode

from realtime.telemetry.logs import (
    ConsoleFormatter,
    WithoutRequest,
    WithoutTraceback,
    WithSubject,
    digest,
    speak_for,
    spelled,
)
from tests.blocks import only
from tests.e2e.harness import Stack, eventually, python, unique


def record(message: str = "connection opened", *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("realtime.test").makeRecord(
        "realtime.test", logging.INFO, __file__, 1, message, args, None, extra=extra
    )


TEAM = """
import logging.config

LOGGING = {
    "version": 1,
    "disable_existing_loggers": True,
    "formatters": {"plain": {"format": "{levelname} {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
"""
LOG = """
logging.config.dictConfig(LOGGING)
logging.getLogger("realtime.bridge").warning("redis lost", extra={"error": "wrong password"})
logging.getLogger("shop").warning("theirs")
"""


def test_documented_handler_writes_what_the_formatter_of_a_team_drops():
    handler = only("metrics.md", "python", "LOGGING")
    before = python("-c", TEAM + LOG, env={}).stderr.splitlines()
    after = python("-c", TEAM + handler + LOG, env={}).stderr.splitlines()
    assert before == ["WARNING redis lost", "WARNING theirs"]
    assert after[0].endswith("WARNING realtime.bridge  redis lost error='wrong password'")
    assert after[1:] == before[1:]


# --- Console -----------------------------------------------------------------------------------------


def test_line_has_time_level_logger_message_and_facts():
    line = ConsoleFormatter().format(record(namespace="hub", code=4401))
    time, _, rest = line.partition(" ")
    assert len(time.split(":")) == 3
    assert rest == "INFO    realtime.test  connection opened namespace='hub' code=4401"


def test_line_without_facts_is_the_message():
    assert ConsoleFormatter().format(record("ready")).endswith("  ready")


@pytest.mark.parametrize("breaking", ["a\nERROR forged", "a\r\nb", "\x1b[2J", "\u2028"])
def test_fact_from_a_client_cannot_start_a_line_of_its_own(breaking: str):
    line = ConsoleFormatter().format(record(event=breaking))
    assert line.isprintable()


# --- Requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "arguments", "said"),
    [
        (
            "Forbidden (%s): %s",
            ("Referer - https://a.test/b?token=x&y=z does not", "/in/?token=x"),
            "Forbidden (Referer - https://a.test/b?… does not): /in/?…",
        ),
        ("Invalid host '/?token=x'", (), "Invalid host '/?…'"),
        ("Not Found: %s", ("/in/",), "Not Found: /in/"),
        ("Why? %s", ("because",), "Why? because"),
    ],
)
def test_query_string_of_a_request_is_not_logged(message: str, arguments: tuple[str, ...], said: str):
    line = record(message, *arguments, request="<GET '/?token=x'>", status_code=403)
    assert WithoutRequest().filter(line)
    assert line.getMessage() == said
    assert not hasattr(line, "request")
    assert "token" not in ConsoleFormatter().format(line)


def test_line_without_a_request_stays_as_it_is():
    line = record("asked ?token=x of %s", "redis")
    assert WithoutRequest().filter(line)
    assert line.getMessage() == "asked ?token=x of redis"


# --- Errors that are events, not bugs ----------------------------------------------------------------


def failing() -> logging.LogRecord:
    try:
        raise ConnectionError("redis is gone")
    except ConnectionError as error:
        return logging.getLogger("x").makeRecord(
            "x",
            logging.ERROR,
            __file__,
            1,
            "receive of %s failed:",
            ("shard",),
            (type(error), error, error.__traceback__),
        )


def test_traceback_is_dropped_and_the_error_kept():
    entry = failing()
    assert WithoutTraceback().filter(entry)
    line = logging.Formatter().format(entry)
    assert line == "receive of shard failed: ConnectionError('redis is gone')"


def test_error_is_spelled_with_its_text():
    assert spelled(RedisError("no\nway")) == r"RedisError('no\nway')"
    assert spelled(TimeoutError()) == "TimeoutError('')"


def test_record_without_an_error_passes_unchanged():
    entry = record("a %s", "b")
    assert WithoutTraceback().filter(entry)
    assert entry.getMessage() == "a b"


def test_record_with_an_empty_error_passes():
    entry = record("a")
    entry.exc_info = (None, None, None)
    assert WithoutTraceback().filter(entry)
    assert entry.getMessage() == "a"


# --- The subject of a line ----------------------------------------------------------------------------


class Connection:
    def __init__(self, name: str) -> None:
        self.facts = {"connection_id": name}


def about(**extra: object) -> object:
    entry = record(**extra)
    assert WithSubject().filter(entry)
    return vars(entry).get("connection_id")


async def test_lines_of_a_task_are_about_the_connection_that_it_works_for():
    async def work(name: str) -> object:
        speak_for(Connection(name))
        await asyncio.sleep(0)
        return about()

    assert await asyncio.gather(work("a"), work("b")) == ["a", "b"]
    assert about() is None


async def test_task_that_a_connection_starts_for_all_is_not_about_it():
    async def shared() -> object:
        return about()

    speak_for(Connection("a"))
    assert about() == "a"
    assert await asyncio.create_task(shared()) is None


async def test_subject_that_a_line_names_itself_stays():
    speak_for(Connection("a"))
    assert about(connection_id="b") == "b"


async def test_line_about_something_that_cannot_say_what_it_is_passes():
    class HalfMade:
        @property
        def facts(self) -> Any:
            raise AttributeError

    speak_for(HalfMade())
    assert about() is None


def test_line_without_an_event_loop_passes():
    assert about() is None


def test_digest_tells_users_apart_without_naming_them():
    assert digest("hub", "7") == digest("hub", "7")
    assert len({digest("hub", "7"), digest("portal", "7"), digest("hub", "8")}) == 3
    assert len(digest("hub", "7")) == 12


# --- Real processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: Any) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("logs"), redis_url, LOG_FORMAT=request.param) as stack:
        yield stack.start_all()


def lines(stack: Stack) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stack.logs.splitlines() if line.startswith("{")]


def closings(stack: Stack, connection_id: str) -> list[tuple[str, int, str]]:
    return [
        (line["by"], line["code"], line["reason"])
        for line in lines(stack)
        if line["message"] == "connection closed" and line["connection_id"] == connection_id
    ]


def reset(websocket: Any) -> None:
    """Cut a connection so that nothing is said any more: RST."""
    sock: socket.socket = websocket.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    websocket.transport.abort()


@pytest.mark.parametrize("stack", ["json"], indirect=True)
async def test_line_says_who_ended_a_connection_and_why(stack: Stack):
    async def ended(connection_id: str) -> tuple[str, int, str]:
        await eventually(lambda: closings(stack, connection_id))
        (closing,) = closings(stack, connection_id)
        return closing

    async with stack.client("hub") as client:
        await client.websocket.close(4000, "good night")
        assert await ended(client.connection_id) == ("client", 4000, "good night")
    async with stack.client("hub") as client:
        client.websocket.transport.write(Frame(Opcode.CLOSE, b"").serialize(mask=True))
        assert await ended(client.connection_id) == ("client", 1005, "")
    async with stack.client("hub") as client:
        client.drop()
        assert await ended(client.connection_id) == ("lost", 1006, "")
    async with stack.client("hub") as client:
        reset(client.websocket)
        assert await ended(client.connection_id) == ("lost", 1006, "")
    async with stack.client("hub", user := unique("u")) as client:
        stack.add("user:disconnect", {"user_id": user, "namespace": "hub", "reason": "on leave"})
        assert await ended(client.connection_id) == ("server", 4403, "on leave")
    async with stack.client("hub") as client:
        client.websocket.transport.write(Frame(Opcode.TEXT, b"\xff").serialize(mask=True))
        assert await ended(client.connection_id) == ("server", 1007, "")
    async with stack.client("hub") as client:
        client.websocket.transport.write(b"\xff\xff\xff\xff")
        by, code, _ = await ended(client.connection_id)
        assert (by, code) == ("server", 1002)


@pytest.mark.parametrize("stack", ["json"], indirect=True)
async def test_every_line_about_a_connection_names_it_and_no_other_does(stack: Stack):
    before = lines(stack)
    async with stack.client("hub", user := unique("u")) as ana, stack.client("hub", user) as again:
        names = {ana.connection_id, again.connection_id}
        # What the first connection has started for all of them.
        stack.redis.client_kill_filter(_type="pubsub")
        await eventually(lambda: "subscription restored" in stack.logs)
    await eventually(lambda: all(closings(stack, name) for name in names))
    said = [line for line in lines(stack) if line not in before]
    about_connections = [line for line in said if line["message"].startswith("connection ")]
    assert {line["connection_id"] for line in about_connections} == names
    assert {line["user"] for line in about_connections} == {digest("hub", user)}
    assert {line["namespace"] for line in about_connections} == {"hub"}
    others = [line for line in said if line["message"].startswith("subscription ")]
    assert others
    assert not any("connection_id" in line or "user" in line for line in others)
    assert user not in stack.logs


@pytest.mark.parametrize("stack", ["console"], indirect=True)
async def test_console_has_the_same_facts(stack: Stack):
    async with stack.client("hub", user := unique("u")) as client:
        pass
    await eventually(lambda: "connection closed" in stack.logs)
    (line,) = (line for line in stack.logs.splitlines() if "connection closed" in line)
    for fact in (
        "by='client'",
        "code=1000",
        f"connection_id={client.connection_id!r}",
        f"user={digest('hub', user)!r}",
    ):
        assert fact in line
