"""The token: asked for once, kept while it is good, replaced when it is refused."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from realtime.client import Denied
from tests.client.scripted import (
    Refusal,
    ScriptedServer,
    Tokens,
    reading,
)
from tests.e2e.harness import eventually


async def test_token_is_sent_in_a_header_and_never_in_the_address(server: ScriptedServer):
    async with reading(server, lambda: "secret"):
        visit = await server.visit(1)
        assert (visit.token, visit.path) == ("secret", "/hub/")


async def test_token_is_asked_for_once_and_kept_until_shortly_before_it_ends(server: ScriptedServer):
    tokens = Tokens([9.0, 3600.0])  # the first is as good as over: ten seconds are left for the way
    async with reading(server, tokens) as reader:
        for number in range(1, 4):
            visit = await server.visit(number)
            await reader.heard("connection:ready", number)
            assert visit.token.startswith(f"{min(number, 2)}.")
            visit.drop()
        await server.visit(4)
        assert tokens.asked == 2


async def test_token_that_says_nothing_of_its_end_is_asked_for_every_time(server: ScriptedServer):
    async with reading(server, map("opaque{}".format, itertools.count()).__next__):
        for number in range(1, 4):
            (await server.visit(number)).drop()
        assert (await server.visit(4)).token == "opaque3"


async def test_expired_token_is_replaced_before_coming_back(server: ScriptedServer):
    async with reading(server, Tokens()):
        await (await server.visit(1)).fail(4401)
        assert (await server.visit(2)).token.startswith("2.")


async def test_refused_token_is_replaced_once_and_at_once(server: ScriptedServer):
    server.script.extend([Refusal(401), "accept", "accept"])
    async with reading(server, Tokens(), reconnection_attempts=0):
        assert (await server.visit(1)).token.startswith("2.")
    server.script.clear()
    server.script.extend([Refusal(401), Refusal(401)])
    async with reading(server, Tokens()) as reader:
        with pytest.raises(Denied, match="401"):
            await reader.end()
        assert server.handshakes == 4


async def test_token_is_only_denied_when_it_is_a_fresh_one_that_is_refused(server: ScriptedServer):
    server.script.extend([Refusal(401), Refusal(503), Refusal(401)])
    async with reading(server, Tokens()):
        assert (await server.visit(1)).token.startswith("3.")


async def test_tries_again_when_there_is_no_token_to_be_had(server: ScriptedServer):
    down = LookupError("session server is down")
    async with reading(server, Tokens(script={1: down, 2: down})):
        await server.visit(1)


async def test_token_that_does_not_come_is_given_up(server: ScriptedServer):
    async with reading(server, Tokens(script={1: asyncio.Event()}), connect_timeout=1) as reader:
        assert "get_token" in (await reader.heard("connection:lost")).data["reason"]
        await server.visit(1)


async def test_end_of_a_session_is_the_end(server: ScriptedServer):
    async with reading(server, Tokens(script={1: Denied(401, "logged out")})) as reader:
        with pytest.raises(Denied, match="logged out"):
            await reader.end()
        assert server.handshakes == 0


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


async def test_token_is_refreshed_in_band_with_a_fresh_one(server: ScriptedServer):
    tokens = Tokens()
    async with reading(server, tokens):
        visit = await server.visit(1)
        await visit.say("auth:expiring", {"expires_at": "2030-01-01T00:00:00.000Z"})
        [refresh] = await eventually(lambda: visit.events("auth:refresh"))
        assert refresh["token"].startswith("2.")
        visit.drop()
        assert (await server.visit(2)).token == refresh["token"]
        assert tokens.asked == 2


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
