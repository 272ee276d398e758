"""What an operator sees, also while Redis is away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from signal import SIGCONT, SIGSTOP

import pytest

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.harness import PATIENCE, Client, Stack, eventually, unique
from tests.e2e.plain_http import Response


async def test_process_that_lives_says_so(stack: Stack):
    assert (await stack.http("GET", "/healthz")).status == 200
    assert (await stack.http("GET", "/readyz")).status == 200


async def test_metrics_are_prometheus_text(stack: Stack):
    async with stack.client("hub") as client:
        await client.call("heartbeat")
        response = await stack.http("GET", "/metrics")
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.body.decode().splitlines()
    assert any(line.startswith("# TYPE ") for line in lines)
    for line in lines:
        if line and not line.startswith("#"):
            float(line.rpartition(" ")[2])


async def test_metrics_name_no_user_and_no_token(stack: Stack):
    thread, user = unique("th"), unique("u")
    async with stack.client("hub", user) as client:
        await client.call("join:thread", {"thread_id": thread})
        await client.send(unique("unknown:"), {})
        body = (await stack.http("GET", "/metrics")).body.decode()
    for secret in (user, thread, client.connection_id, "unknown:"):
        assert secret not in body


async def test_unknown_page_is_not_found(stack: Stack):
    for path in ("/", "/admin/", "/nowhere", "/metrics/x", "/static/x.css"):
        assert (await stack.http("GET", path)).status == 404


class Outage:
    """A socket server with a Redis of its own to take away."""

    def __init__(self, stack: Stack, redis: EmbeddedRedis) -> None:
        self.stack = stack
        self.redis = redis

    async def readiness(self) -> Response:
        """It takes a second at most, also while Redis hangs; here a busy machine has more time."""
        return await self.stack.http("GET", "/readyz", TOKEN, within=20)

    async def is_ready(self) -> bool:
        return (await self.readiness()).status == 200

    async def assert_not_ready(self) -> None:
        await eventually(self._is_not_ready)
        for _ in range(3):
            response = await self.readiness()
            assert response.status == 503
            assert b"redis" in response.body.lower()

    async def _is_not_ready(self) -> bool:
        return not await self.is_ready()

    async def assert_fails_closed(self, client: Client) -> None:
        """The server is alive, but accepts no connection and acknowledges nothing."""
        stack = self.stack
        assert (await stack.http("GET", "/healthz")).status == 200
        assert (await stack.http("GET", "/metrics", TOKEN)).status == 200
        response = await stack.handshake(token=stack.sign())
        stack.assert_refused(response, 503, "unavailable")
        assert int(response.headers["retry-after"]) > 0
        verdict = await stack.http(
            "GET", "/hub/", [("Authorization", f"Bearer {stack.sign()}"), ("Origin", "http://app.test")]
        )
        assert (verdict.status, verdict.error["code"]) == (503, "unavailable")
        assert int(verdict.headers["retry-after"]) > 0
        assert verdict.headers["access-control-allow-origin"] == "http://app.test"
        # A refusal that needs no Redis stays what it is.
        stack.assert_refused(await stack.handshake(), 401, "token_missing")
        error = await client.refused("join:thread", {"thread_id": unique("th")})
        assert error["code"] == "unavailable"
        assert client.close_code is None


TOKEN = [("Authorization", "Bearer let me see")]


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    with (
        EmbeddedRedis() as redis,
        Stack(tmp_path_factory.mktemp("outage"), redis.url, REALTIME_METRICS_TOKEN="let me see") as stack,
    ):
        stack.start_all()
        yield Outage(stack, redis)


async def test_metrics_want_the_token_when_one_is_set(outage: Outage):
    stack = outage.stack
    for headers in (
        [],
        [("Authorization", "Bearer wrong")],
        [("Authorization", "let me see")],
        [("Authorization", "Bearer let me see more")],
        [("Authorization", b"Bearer \xff\xfe")],
        [("Authorization", "Basic let me see")],
    ):
        response = await stack.http("GET", "/metrics", headers)
        assert response.status in {401, 403}
        assert b"# TYPE" not in response.body
    assert (await stack.http("GET", "/metrics", TOKEN)).status == 200
    assert (await stack.http("GET", "/healthz")).status == 200
    assert (await stack.http("GET", "/readyz")).status == 200


async def test_server_without_redis_is_not_ready_until_it_is_back(outage: Outage):
    async with outage.stack.client("hub") as client:
        outage.redis.stop()
        try:
            await outage.assert_not_ready()
            await outage.assert_fails_closed(client)
        finally:
            outage.redis.start()
        await eventually(outage.is_ready)
        await client.call("join:thread", {"thread_id": unique("th")})
        assert (await outage.stack.handshake(token=outage.stack.sign())).status == 101


async def test_server_whose_redis_hangs_is_not_ready_until_it_goes_on(outage: Outage):
    assert outage.redis.process is not None
    async with outage.stack.client("hub") as client:
        outage.redis.process.send_signal(SIGSTOP)
        try:
            await outage.assert_not_ready()
            assert (await outage.stack.http("GET", "/healthz")).status == 200
        finally:
            outage.redis.process.send_signal(SIGCONT)
        await eventually(outage.is_ready)
        await client.call("join:thread", {"thread_id": unique("th")})


async def test_server_starts_without_redis_and_becomes_ready(
    outage: Outage, tmp_path_factory: pytest.TempPathFactory
):
    with EmbeddedRedis(None) as redis:
        redis.stop()
        with Stack(tmp_path_factory.mktemp("early"), redis.url) as stack:
            stack.start_sockets()
            early = Outage(stack, redis)
            await early.assert_not_ready()
            bridge = stack.start("runbridge", ready="")
            redis.start()
            await eventually(early.is_ready)
            bridge.wait_for()
            thread = unique("th")
            async with stack.client("hub") as client:
                await client.call("join:thread", {"thread_id": thread})
                stack.add("chat:ended", {"thread_id": thread})
                await client.expect("chat:ended")


@pytest.mark.parametrize("host", ["x,x", "127.0.0.1:999999", "\xff", "a" * 3000])
async def test_unknown_path_is_a_404_without_a_page_whatever_the_host(uvicorn_stack: Stack, host: str):
    """With DEBUG on, too, where Django would make a page of what was asked."""
    reader, writer = await asyncio.open_connection("127.0.0.1", uvicorn_stack.port)
    writer.write(f"GET /nothing HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1"))
    async with asyncio.timeout(PATIENCE):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 404")
    assert answer.endswith(b'\r\n\r\n{"error": {"code": "not_found", "message": "no such namespace"}}')
