"""Who is judged dead: a connection on which nothing comes while this process reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from realtime.redis import client as redis
from realtime.redis import pipelining as pipe
from realtime.redis import pubsub as subscription
from realtime.redis.client import execute, key
from realtime.redis.connection import TICKS, Liveness, pack
from realtime.redis.pipelining import Pipe, Pipes
from realtime.redis.pubsub import Subscription
from tests.inprocess import eventually

TIMEOUT = 0.1


class Peer:
    """Takes connections and answers, or not."""

    def __init__(self) -> None:
        self.answers = b"+OK\r\n"
        self.received = b""
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Peer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}?protocol=2"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for _ in range(
            3
        ):  # a connection that has just been accepted is served first, else no one would close it
            await asyncio.sleep(0)
        for writer in self.writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self.writers), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        while data := await reader.read(65536):
            self.received += data
            if b"CLIENT" in data:
                writer.write(b"+OK\r\n" * data.count(b"SETINFO"))
            elif self.answers:
                writer.write(self.answers)
        writer.close()


@pytest.fixture
async def peer(process: str, settings) -> AsyncIterator[Peer]:
    async with Peer() as peer:
        settings.REALTIME = {**settings.REALTIME, "REDIS_URL": peer.url}
        yield peer


@pytest.fixture
def _impatient(monkeypatch) -> None:
    monkeypatch.setattr(pipe, "patience", lambda: TIMEOUT)
    monkeypatch.setattr(subscription, "silence_limit", lambda: TIMEOUT)


def block(seconds: float) -> None:
    """As the loop is when our own code takes long, or the process is suspended."""
    time.sleep(seconds)


def judged(work: Callable[[Callable[[], None]], Any], run: Callable[..., Any] = asyncio.run) -> list[float]:
    """When a connection was found dead."""
    dead: list[float] = []

    async def main() -> None:
        began = asyncio.get_running_loop().time()
        await work(lambda: dead.append(asyncio.get_running_loop().time() - began))

    run(main())
    return dead


RUNS = [asyncio.run, uvloop.run]


@pytest.mark.parametrize("run", RUNS)
def test_silence_is_death_after_the_timeout_and_not_before(run: Callable[..., Any]):
    async def work(on_dead: Callable[[], None]) -> None:
        found = asyncio.Event()

        def end() -> None:
            on_dead()
            found.set()

        liveness = Liveness(TIMEOUT, lambda: True, end)
        liveness.watch()
        async with asyncio.timeout(30):
            await found.wait()

    (at,) = judged(work, run)
    assert at >= TIMEOUT


@pytest.mark.parametrize("run", RUNS)
def test_loop_that_was_blocked_judges_anew(run: Callable[..., Any]):
    async def work(on_dead: Callable[[], None]) -> None:
        liveness = Liveness(TIMEOUT, lambda: True, on_dead)
        liveness.watch()
        for _ in range(3):
            await asyncio.sleep(TIMEOUT / 2)
            block(TIMEOUT * 3)
        liveness.stop()

    assert judged(work, run) == []


def test_nothing_is_judged_when_nothing_is_due():
    async def work(on_dead: Callable[[], None]) -> None:
        liveness = Liveness(TIMEOUT / 10, lambda: False, on_dead)
        liveness.watch()
        await asyncio.sleep(TIMEOUT)

    assert judged(work) == []


@pytest.mark.usefixtures("_impatient")
async def test_pipe_whose_answer_waits_in_the_socket_while_the_loop_is_blocked_is_kept(peer: Peer):
    pipe = Pipe()
    await pipe.send("GET", "x")
    peer.answers = b""
    answer = pipe.send("GET", "y")
    await eventually(lambda: b"$1\r\ny" in peer.received)
    peer.writers[0].write(b"+late\r\n")
    block(TIMEOUT * 5)
    assert await answer == b"late"
    peer.answers = b"+again\r\n"
    await pipe.send("GET", "z")
    assert len(peer.writers) == 1
    pipe.close()


@pytest.mark.usefixtures("_impatient")
async def test_pipe_that_gets_no_answer_is_given_up_and_another_one_made(peer: Peer):
    pipe = Pipe()
    await pipe.send("GET", "x")
    peer.answers = b""
    with pytest.raises(RedisConnectionError):
        await pipe.send("GET", "y")
    peer.answers = b"+new\r\n"
    assert await pipe.send("GET", "z") == b"new"
    assert len(peer.writers) == 2
    pipe.close()


@pytest.mark.usefixtures("_impatient")
async def test_pipe_on_which_a_long_answer_arrives_slowly_is_kept(peer: Peer):
    pipe = Pipe()
    await pipe.send("GET", "x")
    peer.answers = b""
    answer = pipe.send("GET", "y")
    await eventually(lambda: b"$1\r\ny" in peer.received)
    peer.writers[0].write(b"$40\r\n")
    for _ in range(20):
        peer.writers[0].write(b"..")
        await asyncio.sleep(TIMEOUT / 8)
    peer.writers[0].write(b"\r\n")
    assert await answer == b"." * 40
    pipe.close()


SUBSCRIBED = b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
PONG = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"


class Listener:
    """What a subscription tells."""

    def __init__(self) -> None:
        self.heard: list[tuple[bytes, bytes]] = []
        self.lost: list[bytes] = []
        self.restored: list[bytes] = []
        self.subscription = Subscription(self.heard.extend, self.lost.extend, self.restored.extend)


@pytest.mark.usefixtures("_impatient")
async def test_subscription_is_kept_while_the_loop_is_blocked_and_lost_when_it_is_silent(peer: Peer, caplog):
    peer.answers = SUBSCRIBED
    listener = Listener()
    await listener.subscription.subscribe([b"a"])
    peer.answers = PONG
    await eventually(lambda: peer.received.count(pack("PING")) > TICKS)
    for _ in range(3):
        peer.writers[0].write(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\n1\r\n")
        block(TIMEOUT * 3)
        await asyncio.sleep(TIMEOUT / TICKS)
    await eventually(lambda: len(listener.heard) == 3)
    assert len(peer.writers) == 1
    assert listener.lost == []
    peer.answers = b""
    await eventually(lambda: listener.lost)
    assert "redis does not answer" in caplog.text
    assert listener.subscription.is_lost(b"a")
    peer.answers = SUBSCRIBED
    await eventually(lambda: listener.restored == [b"a"])
    assert not listener.subscription.is_lost(b"a")
    listener.subscription.close()


async def test_outage_is_logged_ever_more_seldom(caplog):
    failing = Listener().subscription
    for _ in range(100):
        failing.on_failure(RedisConnectionError("refused"), None)
    told = [record.failures for record in caplog.records if record.message == "subscription lost"]
    assert told == [1, 2, 4, 8, 16, 32, 64]
    failing.on_failure(RedisConnectionError("cut"), lasted=3600.0)
    assert caplog.records[-1].failures == 1
    failing.close()


# --- What is sent again ------------------------------------------------------------------------------


async def test_what_was_not_written_yet_is_sent_again_and_what_was_is_not(peer: Peer):
    pipe = Pipe()
    await pipe.send("GET", "x")
    peer.answers = b""
    written = pipe.send("GET", "written")
    await eventually(lambda: b"written" in peer.received)
    peer.answers = b"+again\r\n"
    unwritten = pipe.send("GET", "unwritten")
    pipe.end(RedisConnectionError("cut"))
    with pytest.raises(RedisError):
        await written
    assert await unwritten == b"again"
    pipe.close()


@pytest.mark.parametrize("once", [True, False])
async def test_pipes_may_end_with_a_connection_that_is_lost_while_nothing_is_on_its_way(
    peer: Peer, monkeypatch, once: bool
):
    on_failure, pipes = Pipe.on_failure, Pipes(once=once)
    await pipes.to("x").send("GET", "x")
    losses = []
    monkeypatch.setattr(Pipe, "on_failure", lambda *arguments: losses.append(on_failure(*arguments)))
    peer.writers[0].close()
    await eventually(lambda: losses)
    assert pipes.is_closed == once
    sent = pipes.to("x").send("GET", "x")
    if once:
        with pytest.raises(RedisConnectionError):
            await sent
    else:
        assert await sent == b"OK"
    pipes.close()


async def test_command_that_may_be_done_twice_is_sent_once_more_when_its_connection_is_lost(peer: Peer):
    peer.answers = b""
    asked = asyncio.create_task(execute("GET", key("x")))
    await eventually(lambda: b"GET" in peer.received)
    peer.answers = b"+done\r\n"
    peer.writers[0].transport.abort()
    assert await asked == b"done"
    await redis.close()


async def test_command_fails_when_redis_stays_away(process: str, settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis://127.0.0.1:1"}
    with pytest.raises(RedisError):
        await execute("GET", "x")
