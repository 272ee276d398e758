"""A version and the one before it side by side on one Redis, while one takes the other's place. docs/deployment.md,
"Upgrades", is this file in prose.

The version before is the newest release, or, as long as there is none, the oldest commit that drains: its files, out
of the repository's own history.
"""

from __future__ import annotations

import asyncio
import io
import subprocess
import tarfile
from pathlib import Path
from signal import SIGTERM

import pytest

from tests.e2e.harness import ROOT, Process, Stack, eventually, free_port, python, unique
from tests.e2e.test_recorder import Database
from tests.faults.world import World

FIRST = "eb13bdfa171206a1b3b8f40d5915e7394af83718"
"""Limits, draining, and the Redis layout 1."""


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def version_before() -> str:
    tags = git("tag", "--list", "v*", "--sort=-version:refname", "--no-contains", "HEAD").decode().split()
    return tags[0] if tags else FIRST


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it was."""
    directory = tmp_path_factory.mktemp("before")
    archive = git("archive", version_before())
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(directory, filter="data")
    return directory


def start(stack: Stack, tree: Path, command: str, port: int = 0) -> Process:
    env = {"SOCKETS_PORT": str(port)} if port else {}
    return stack.start(command, str(tree / "manage.py"), command, **env)


def migrate(stack: Stack, tree: Path) -> None:
    done = python("manage.py", "migrate", "--verbosity", "0", folder=tree, env=stack.env)
    assert done.returncode == 0, done.stderr


async def stop(process: Process) -> None:
    process.signal(SIGTERM)
    assert await asyncio.to_thread(process.wait) == 0


def has_history() -> bool:
    """Whether this is a whole clone: neither an archive nor a shallow one, which cannot know what was before."""
    try:
        return git("rev-parse", "--is-shallow-repository").strip() == b"false"
    except (OSError, subprocess.CalledProcessError):
        return False


@pytest.mark.skipif(not has_history(), reason="needs the repository's history: git fetch --unshallow")
@pytest.mark.parametrize("way", ["upgrade", "way back"])
async def test_no_client_notices_that_another_version_takes_over(
    world: World, before: Path, way: str, record_property
):
    old, new = (before, ROOT) if way == "upgrade" else (ROOT, before)
    stack = world.stack
    for name in [name for name in stack.env if name.startswith("COVERAGE_")]:
        del stack.env[name]  # of files that are not these
    stack.env.pop("PYTHONDONTWRITEBYTECODE", None)
    database = Database(stack.env["DATABASE_URL"])

    def begin() -> Process:
        migrate(stack, old)
        world.bridges = [start(stack, old, "runbridge") for _ in range(2)]
        world.sockets = [start(stack, old, "runsockets", port) for port in world.ports]
        return start(stack, old, "runrecorder")

    recorder = await asyncio.to_thread(begin)
    await world.gather()
    async with world.traffic():
        # The database first, the sockets last: a new message is understood before any process sends it.
        if way == "upgrade":
            await asyncio.to_thread(migrate, stack, new)
        another = await asyncio.to_thread(start, stack, new, "runrecorder")
        await stop(recorder)
        for number, bridge in enumerate(world.bridges):
            world.bridges[number] = await asyncio.to_thread(start, stack, new, "runbridge")
            await stop(bridge)
        for number, server in enumerate(world.sockets):
            await stop(server)
            world.sockets[number] = await asyncio.to_thread(
                start, stack, new, "runsockets", world.ports[number]
            )
            await world.all_are_present()
    account = await world.nothing_happened(record_property)
    assert set(account.endings) == {"1012"}
    await world.presence_is_true()
    await world.part()
    # The previous version ran, not the installed one.
    for name in ("bridge", "server"):
        assert any((before / "realtime").glob(f"__pycache__/{name}.*.pyc"))
    for person in world.people:
        await eventually(lambda user=person.user_id: database.status(user) == "offline")
        assert database.changes(person.user_id) == [("online", "connect"), ("offline", "grace")]
    await stop(another)


@pytest.mark.skipif(not has_history(), reason="needs the repository's history: git fetch --unshallow")
@pytest.mark.parametrize("bridge", ["before", "now"])
async def test_orders_take_effect_in_both_versions_whichever_passes_them_on(
    redis_url: str, tmp_path: Path, before: Path, bridge: str
):
    stack, port = Stack(tmp_path, redis_url), free_port()
    try:
        await asyncio.to_thread(start, stack, ROOT if bridge == "now" else before, "runbridge")
        await asyncio.to_thread(start, stack, ROOT, "runsockets", stack.port)
        await asyncio.to_thread(start, stack, before, "runsockets", port)
        for at in (stack.port, port):
            await _obey(stack, at)
    finally:
        await asyncio.to_thread(stack.stop)
    stack.assert_calm()


async def _obey(stack: Stack, port: int) -> None:
    """Grant, revoke, set a status and disconnect, at the instance of this port."""
    user, thread = unique("u"), unique("t")
    right = {"thread_id": thread, "user_id": user}
    async with stack.client("portal", user, port=port) as customer, stack.client(port=port) as attendant:
        stack.add("thread:grant", right)
        stack.add("user:notification", {"user_id": user}, namespaces=["portal"])
        await customer.expect("user:notification")
        await customer.call("join:thread", {"thread_id": thread})
        await attendant.call("join:thread", {"thread_id": thread})
        stack.add("thread:revoke", right)
        stack.add("thread:message", {"thread_id": thread, "message_id": 1})
        assert (await customer.expect("room:left"))["data"]["room"] == f"thread:{thread}"
        await attendant.expect("thread:message")
        assert (await customer.refused("join:thread", {"thread_id": thread}))["code"] == "forbidden"
        if port == stack.port:  # the version before may still write what it took before the order
            assert not customer.received("thread:message")
        stack.add("presence:set", {"user_id": attendant.user_id, "status": "away"})
        await attendant.expect("attendant:away", user_id=attendant.user_id)
        stack.add("user:disconnect", {"user_id": user, "namespace": "portal"})
        assert await customer.expect_close() == 4403
