"""Two socket servers behind a reverse proxy, configured as in deploy/; one of them is killed."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.e2e.harness import ROOT, Process, eventually, free_port
from tests.faults.world import World

DEPLOY = ROOT / "deploy"
Start = Callable[[World, int, Path], Process]


def configured(name: str, world: World, port: int) -> str:
    """A configuration of deploy/, with the ports of this test."""
    text = (DEPLOY / name).read_text()
    for there, here in ((8001, world.ports[0]), (8002, world.ports[1]), (8080, port)):
        assert f":{there}" in text
        text = re.sub(rf":{there}\b", f":{here}", text)
    return text


def haproxy(world: World, port: int, directory: Path) -> Process:
    file = directory / "haproxy.cfg"
    file.write_text(configured("haproxy.cfg", world, port))
    binary = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert binary, "needs the Debian package haproxy"
    return Process("haproxy", [binary, "-db", "-f", str(file)], {}, directory / "haproxy.log")


def nginx(world: World, port: int, directory: Path) -> Process:
    file = directory / "nginx.conf"
    file.write_text(configured("nginx.conf", world, port))
    binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert binary, "needs the Debian package nginx-light"
    subprocess.run([binary, "-t", "-p", str(directory), "-c", str(file)], check=True, capture_output=True)
    command = [binary, "-p", str(directory), "-c", str(file), "-g", "daemon off; pid nginx.pid;"]
    return Process("nginx", command, {}, directory / "nginx.log")


@pytest.mark.parametrize("start", [haproxy, nginx], ids=lambda start: start.__name__)
async def test_people_behind_a_proxy_go_on_with_the_other_server_when_one_is_killed(
    world: World, tmp_path: Path, start: Start
):
    port = free_port()
    await asyncio.to_thread(world.start)
    proxy = start(world, port, tmp_path)
    try:
        await eventually(lambda: _is_ready(world, port))
        await world.gather([port])
        async with world.traffic(after=2):
            world.sockets[0].signal(SIGKILL)
        account = await world.settle()
        assert account.is_perfect, account
        assert world.flaps() == []
        # Both had somebody, and the token is in nobody's log.
        assert account.endings.total() > 0
        secrets = [token.rpartition(".")[2] for token in world.stack.tokens]
        logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
        assert not any(secret in logs for secret in secrets)
    finally:
        proxy.stop()


async def _is_ready(world: World, port: int) -> bool:
    try:
        return (await world.stack.http("GET", "/readyz", port=port)).status == 200
    except OSError:
        return False
