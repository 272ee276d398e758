"""The longest wait of a backbone, whatever Redis, the network or the resolver does."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from realtime.redis import appending, bounded
from realtime.redis.appending import append
from realtime.redis.bounded import call, now
from realtime.redis.client import key, sync_client

WAIT = 0.3
LONG = 4.0
"""Seconds: less than any time-out of a socket, and far more than `WAIT`, on however slow a machine."""
Server = Callable[[socket.socket], None]


def drip(connected: socket.socket) -> None:
    """Answer a byte at a time, and never finish."""
    with contextlib.suppress(OSError):
        connected.sendall(b"+")
        while True:
            connected.sendall(b"x")
            time.sleep(0.02)


def silent(_: socket.socket) -> None:
    """Accept, and say nothing."""


@contextlib.contextmanager
def serving(server: Server) -> Iterator[int]:
    open_ones: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connected, _ = listening.accept()
                    open_ones.append(connected)
                    threading.Thread(target=server, args=[connected], daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()
    for each in open_ones:
        bounded.shut_down(each)
        each.close()


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    begun = time.monotonic()
    with pytest.raises(RedisError):
        yield
    assert time.monotonic() - begun < LONG


@pytest.mark.parametrize(
    "url", ["redis://{}", "redis+sentinel://{}/shop", "redis+cluster://{}", "rediss://{}"]
)
@pytest.mark.parametrize("server", [silent, drip], ids=["silent", "drips"])
def test_server_that_does_not_answer_is_waited_for_in_all_as_long_as_it_was_asked(
    url: str, server: Server, settings
):
    with serving(server) as port:
        address = url.format(f"127.0.0.1:{port}")
        settings.REALTIME = {**settings.REALTIME, "REDIS_URL": address}
        with in_time():
            append([b"{}"], now() + WAIT)


def test_address_that_swallows_packets(settings):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:  # no more than it takes is accepted
        address = listening.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        settings.REALTIME = {**settings.REALTIME, "REDIS_URL": f"redis://127.0.0.1:{address[1]}"}
        with in_time():
            append([b"{}"], now() + WAIT)
        for each in waiting:
            each.close()


def test_resolver_that_hangs(settings, monkeypatch):
    going_on = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        going_on.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": "redis://redis.example"}
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with in_time():
        append([b"{}"], now() + WAIT)
    going_on.set()


@pytest.mark.parametrize("host", ["redis.invalid", "a" * 70 + ".example"], ids=["unknown", "too-long"])
def test_host_that_has_no_address_is_an_error_of_redis(host: str, settings):
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": f"redis://{host}"}
    with pytest.raises(RedisError):
        append([b"{}"], now() + 5)


def test_open_connection_that_falls_silent_is_cut(realtime_redis):
    append([b"1"], now() + 5)
    pool = appending.connections()
    connection, is_new = pool.take(now() + 5)
    assert not is_new
    ours, theirs = socket.socketpair()
    with ours, theirs, in_time(), bounded.cutting(ours, now() + WAIT):
        if not ours.recv(1):
            raise RedisTimeoutError
    pool.give_back(connection)
    append([b"2"], now() + 5)
    assert sync_client().xlen(key("stream")) == 2


def test_connection_that_the_server_has_closed_is_replaced(realtime_redis):
    for _ in range(3):
        append([b"x"], now() + 5)
        sync_client().client_kill_filter(_type="normal", skipme=True)
    assert sync_client().xlen(key("stream")) == 3


def test_several_are_appended_in_order_or_none(realtime_redis):
    append([b"1", b"2", b"3"], now() + 5)
    assert [fields[b"message"] for _, fields in sync_client().xrange(key("stream"))] == [b"1", b"2", b"3"]
    sync_client().delete(key("stream"))
    sync_client().set(key("stream"), "not a stream")
    with pytest.raises(RedisError):
        append([b"4", b"5"], now() + 5)


@pytest.mark.parametrize("size", [1, 3])
def test_full_redis_takes_all_or_none(size: int, realtime_redis):
    client = sync_client()
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisError):
            append([b"x"] * size, now() + 5)
    finally:
        client.config_set("maxmemory", 0)
    assert client.xlen(key("stream")) == 0
    append([b"x"] * size, now() + 5)
    assert client.xlen(key("stream")) == size


def test_time_that_is_over_sends_nothing(realtime_redis):
    with pytest.raises(RedisTimeoutError):
        append([b"x"], now() - 1)
    assert sync_client().xlen(key("stream")) == 0


def test_child_of_a_fork_has_connections_and_threads_of_its_own(realtime_redis):
    append([b"parent"], now() + 5)
    call(lambda: None, now() + 5)
    pid = os.fork()
    if not pid:
        status = 1
        with contextlib.suppress(BaseException):
            append([b"child"], now() + 5)
            status = call(lambda: 0, now() + 5)
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    append([b"parent"], now() + 5)
    assert sync_client().xlen(key("stream")) == 3


def test_calls_that_hang_are_bounded_in_number(monkeypatch):
    monkeypatch.setattr(bounded, "MOST", 2)
    threads = bounded.Threads()
    monkeypatch.setattr(bounded.threads, "start", threads.start)
    going_on = threading.Event()
    for _ in range(2):
        with pytest.raises(RedisTimeoutError):
            call(lambda: going_on.wait(60), now() + 0.05)
    with pytest.raises(RedisTimeoutError, match="2 calls wait"):
        call(lambda: None, now() + 60)
    going_on.set()


def test_error_of_a_call_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 / 0, now() + 5)
    with pytest.raises(redis.RedisError):
        call(sync_client, now() - 1)


def test_system_without_a_thread_left_is_an_error_of_redis_and_passes(realtime_redis, monkeypatch):
    """It must neither fail the request, nor leave later calls without a bound."""
    bounded.forget_all()
    appending.connections.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_thread_left)
        with pytest.raises(RedisError, match="can't start new thread"):
            append([b"1"], now() + LONG)
    append([b"2"], now() + LONG)  # and opens a connection
    bounded.forget_all()  # (the watchdog)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_thread_left)
        with pytest.raises(RedisError, match="can't start new thread"):
            append([b"3"], now() + LONG)
    with (
        serving(silent) as port,
        socket.create_connection(("127.0.0.1", port)) as connected,
        bounded.cutting(connected, now() + WAIT),
    ):
        assert connected.recv(1) == b""


def _no_thread_left(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
