"""The token: asked for once, kept while it is good, replaced when it is refused."""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import json
import logging
import traceback
from typing import Any

import pytest

from realtime.client import CallFailed, Denied
from realtime.client.tokens import expiry
from tests.client.scripted import (
    Refusal,
    ScriptedServer,
    Tokens,
    joined,
    reading,
    resumes,
    token,
)
from tests.e2e.harness import eventually


async def test_token_that_says_nothing_of_its_end_is_asked_for_every_time(server: ScriptedServer):
    async with reading(server, map("opaque{}".format, itertools.count()).__next__):
        for number in range(1, 4):
            (await server.visit(number)).drop()
        assert (await server.visit(4)).token == "opaque3"


async def test_token_is_only_denied_when_it_is_a_fresh_one_that_is_refused(server: ScriptedServer):
    server.script.extend([Refusal(401), Refusal(503), Refusal(401)])
    async with reading(server, Tokens()):
        assert (await server.visit(1)).token.startswith("3.")


async def test_token_that_does_not_come_is_given_up(server: ScriptedServer):
    async with reading(server, Tokens(script={1: asyncio.Event()}), connect_timeout=0.2) as reader:
        assert "get_token" in (await reader.heard("connection:lost")).data["reason"]
        await server.visit(1)


async def test_session_that_ends_while_there_is_a_connection_ends_with_it(server: ScriptedServer):
    ended = Denied(401, "logged out")
    tokens = Tokens(script={2: ended, 3: ended})
    async with reading(server, tokens) as reader:
        visit = await server.visit(1)
        await visit.say("auth:expiring", {})
        await eventually(lambda: tokens.asked == 2)
        await reader.client.call("heartbeat")
        await visit.fail(4401)
        with pytest.raises(Denied, match="logged out"):
            await reader.end()


async def test_token_asked_for_when_the_connection_is_lost_is_waited_for_and_not_asked_for_again(
    server: ScriptedServer,
):
    given = asyncio.Event()
    tokens = Tokens(script={2: given})
    async with reading(server, tokens) as reader:
        visit = await server.visit(1)
        await visit.say("auth:expiring", {})
        await visit.message("1")
        await reader.heard("thread:message")
        await eventually(lambda: tokens.asked == 2)
        await visit.fail(4401)
        await eventually(lambda: reader.client.connection_id is None)
        given.set()
        assert (await server.visit(2)).token.startswith("2.")
        assert tokens.asked == 2


async def test_refresh_that_fails_is_no_end(server: ScriptedServer):
    tokens = Tokens(script={2: LookupError("session server is down")})
    async with reading(server, tokens):
        visit = await server.visit(1)
        await visit.say("auth:expiring", {})
        await eventually(lambda: tokens.asked == 2)
        await visit.fail(4401)
        assert (await server.visit(2)).token.startswith("3.")


async def test_refresh_that_fails_after_its_connection_has_ended_is_not_logged_by_asyncio(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
):
    failing, secret = asyncio.Event(), token("eyJhbGciOiJIUzI1NiJ9")

    async def get_token() -> str:
        if failing.is_set():
            return secret
        if server.visits:
            await failing.wait()
            raise LookupError(f"no session for {secret}")
        return token()

    async with reading(server, get_token):
        visit = await server.visit(1)
        await visit.say("auth:expiring", {})
        await eventually(lambda: any(task.get_name() == "client: get_token" for task in asyncio.all_tasks()))
        visit.drop()
        visit = await server.visit(2)
        failing.set()
        await eventually(lambda: all(task.get_name() != "client: get_token" for task in asyncio.all_tasks()))
        await visit.say("auth:expiring", {})
        await eventually(lambda: visit.events("auth:refresh"))
        gc.collect()
    assert secret not in caplog.text


# --- What is no token, and where none appears ---------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        *(
            ("se.cret\nse.cret", "line break"),
            ("se.cret\r\nX-Other: 1", "line break"),
            ("se.cret se.cret", "space"),
        ),
        *(
            ("se.crét", "other characters"),
            ("se.cret\x00", "other characters"),
            ("se\u200bcret", "other characters"),
        ),
        *(("", "empty"), (" \n", "empty"), (None, "got NoneType"), (b"se.cret", "got bytes")),
    ],
)
async def test_what_can_never_be_a_token_is_one_clear_error_and_never_tried_again(
    server: ScriptedServer, given: Any, problem: str, caplog: pytest.LogCaptureFixture
):
    asked = []

    def get_token() -> Any:
        asked.append(1)
        return given

    async with reading(server, get_token) as reader:
        with pytest.raises(Denied, match=problem) as denied:
            await reader.end()
    assert (server.handshakes, len(asked), denied.value.error) == (0, 1, "token_invalid")
    said = f"{denied.value!r} {denied.value} {caplog.text} {reader.events!r} {denied.value.__cause__!r}"
    assert "cret" not in said


async def test_token_appears_in_no_reason_exception_repr_or_log(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("websockets.server").setLevel(
        logging.INFO
    )  # the server's side, which is none of a client
    secret = token("eyJhbGciOiJIUzI1NiJ9")
    quoting = json.dumps({"error": {"code": "unavailable", "message": f"what is {secret}?"}})
    server.script.extend([Refusal(503, {"Retry-After": "0"}, quoting), "accept"])
    server.answers["auth:refresh"] = {"code": "internal", "message": f"cannot take {secret}"}
    async with reading(server, lambda: secret) as reader:
        visit = await server.visit(1)
        await visit.say("auth:expiring", {})
        await eventually(lambda: visit.events("auth:refresh"))
        await reader.client.call("heartbeat")
        server.script.extend([Refusal(401, body=quoting), Refusal(401, body=quoting)])
        await visit.fail(4401, f"{secret} has expired"[:100])
        with pytest.raises(Denied) as denied:
            await reader.end()
    told = [event for event in reader.events if event.name.startswith("connection:")]
    session = (reader.client, vars(reader.client), told)
    said = f"{session!r} {denied.value!r} {denied.value.reason} {denied.value.message} {caplog.text}"
    assert "what is …?" in said
    assert secret not in said
    assert secret.split(".")[1] not in said


async def test_failure_of_get_token_is_told_without_a_token(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
):
    secret = token("eyJhbGciOiJIUzI1NiJ9")
    failing = LookupError(f"no session for {secret}")
    async with reading(server, Tokens(script={1: failing})) as reader:
        reason = (await reader.heard("connection:lost")).data["reason"]
    assert reason == "NoToken: get_token failed: LookupError('no session for …')"
    assert secret not in caplog.text


async def test_exceptions_that_led_to_another_quote_no_token(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
):
    secret = token("eyJhbGciOiJIUzI1NiJ9")
    failing = LookupError(f"no session for {secret}")
    async with reading(server, Tokens(script={1: failing}), reconnection_attempts=0) as reader:
        with pytest.raises(ConnectionError) as used_up:
            await reader.end()
    async with reading(server, lambda: secret) as reader:
        await (await server.visit(1)).fail(4403, f"{secret[:80]} has been revoked")
        with pytest.raises(Denied) as denied:
            await reader.end()
    logged_out = Denied(401, f"{secret} is of no user")
    async with reading(server, Tokens(script={1: logged_out})) as reader:
        with pytest.raises(Denied) as ended:
            await reader.end()
    said = "".join(
        "".join(traceback.format_exception(each)) for each in (used_up.value, denied.value, ended.value)
    )
    for part in (secret, secret.split(".")[0], secret.split(".")[1][:20]):
        assert part not in said + caplog.text
    assert "Denied: 401 … is of no user" in said


async def test_cause_that_quotes_no_token_is_kept(server: ScriptedServer):
    failing = LookupError("the session server is down")
    async with reading(server, Tokens(script={1: failing}), reconnection_attempts=0) as reader:
        with pytest.raises(ConnectionError) as used_up:
            await reader.end()
    assert "LookupError: the session server is down" in "".join(traceback.format_exception(used_up.value))


async def test_answer_that_quotes_the_token_is_told_without_it(server: ScriptedServer):
    server.answers["presence:away"] = {"code": "internal", "message": "what is opaque-secret?"}
    async with reading(server, lambda: "opaque-secret") as reader:
        visit = await server.visit(1)
        with pytest.raises(CallFailed, match=r"what is …\?") as failed:
            await reader.client.call("presence:away")
        await visit.say("error", {"code": "internal", "message": "and opaque-secret?"})
        assert (await reader.heard("error")).data["message"] == "and …?"
    assert "opaque-secret" not in "".join(traceback.format_exception(failed.value))


async def test_request_for_a_token_that_is_cancelled_is_told_as_such(server: ScriptedServer):
    async def get_token() -> str:
        raise asyncio.CancelledError

    async with reading(server, get_token) as reader:
        reason = (await reader.heard("connection:lost")).data["reason"]
        assert reason == "NoToken: get_token failed: CancelledError()"


# --- Forgotten ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["left", "closed normally", "denied", "given up"])
async def test_end_forgets_token_rooms_and_what_waits(server: ScriptedServer, end: str):
    tokens = Tokens()
    attempts = 0 if end == "given up" else None
    async with reading(server, tokens, reconnection_attempts=attempts) as reader:
        visit = await joined(server, reader)
        await visit.message("205")
        await reader.heard("thread:message")
        match end:
            case "closed normally":
                await visit.fail(1000)
            case "denied":
                await visit.fail(4403)
            case "given up":
                visit.drop()
        if end != "left":
            await asyncio.wait([reader.task])
    server.rooms = {"user:8": "100"}
    async with reader.client:
        visit = await server.visit(2)
        await eventually(lambda: reader.client.rooms)
        assert (visit.path, visit.token.split(".")[0], visit.sent) == ("/hub/", "2", [])
        assert reader.client.rooms == {"user:8"}


async def test_other_user_resumes_nothing_and_sends_nothing_of_the_last_one(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
):
    async with reading(server) as reader:
        server.user_id = "7"
        visit = await joined(server, reader)
        await visit.message("205")
        await reader.heard("thread:message")
        server.script.append("hang")
        server.user_id, server.rooms = "8", {"user:8": "300"}
        visit.drop()
        back = await server.visit(2)
        await reader.client.send("presence:away")
        calling = asyncio.create_task(reader.client.call("presence:online"))
        await asyncio.sleep(0)
        back.go.set()
        with pytest.raises(CallFailed, match="another user") as failed:
            await calling
        assert failed.value.code == "closed"
        await reader.heard("room:joined", 2)
        assert back.events("resume") == [{"rooms": {"user:8": "300"}}]  # it was announced in the address
        assert back.events("join:thread") == [{"thread_id": "42"}]
        assert back.events("presence:away") == []
        assert "1 events of the last one were not sent" in caplog.text
        back.drop()
        assert await resumes(await server.visit(3)) == {"user:8": "300", "thread:42": "200"}


@pytest.mark.parametrize("exp", ["1" + "0" * 400, "[" * 100_000, '"soon"', "null"])
def test_token_whose_end_cannot_be_read_counts_as_expired(exp: str):
    payload = base64.urlsafe_b64encode(b'{"exp":%b}' % exp.encode()).decode()
    assert expiry(f"h.{payload}.s") == 0.0
