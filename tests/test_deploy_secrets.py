"""The Redis users, passwords and image digests of `deploy/`, made by its scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import redis

from realtime.testing.embedded_redis import EmbeddedRedis
from tests.e2e.test_acl import EVERYWHERE
from tests.test_deploy import COMPOSE, DEPLOY, DOCKERFILE, OWN, SERVICES


def test_redis_of_compose_has_a_user_for_each_role():
    assert not re.search("requirepass|REDIS_PASSWORD", (DEPLOY / "compose.yaml").read_text())
    for service in OWN.values():
        user = service["build"]["target"]
        secret = f"${{REDIS_{user.upper()}_PASSWORD:?}}"
        assert service["environment"]["REDIS_URL"] == f"redis://{user}:{secret}@redis:6379/0"
    assert "--aclfile /run/secrets/redis-users" in SERVICES["redis"]["command"]
    assert COMPOSE["secrets"]["redis-users"]["file"] == "./redis-users.acl"


def rules(line: str) -> list[str]:
    """What a line says about a user, without the password."""
    return [word for word in line.split() if word[0] not in "#>"]


def test_users_of_compose_are_those_of_the_recipe():
    lines = (DEPLOY / "redis-users.acl.example").read_text().splitlines()
    assert lines[0] == "user default off"
    recipe = [rules(line.removeprefix("ACL SETUSER ")) for line in EVERYWHERE]
    assert [rules(line.removeprefix("user ")) for line in lines[2:]] == recipe


def shell(script: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", script], capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", **env}
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The folder after `passwords.sh`."""
    for name in ("passwords.sh", "redis-users.acl.example"):
        shutil.copy(DEPLOY / name, tmp_path)
    done = shell(tmp_path / "passwords.sh")
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path


def test_passwords_are_made_once_and_only_env_has_them(made: Path):
    env = dict(line.split("=") for line in (made / ".env").read_text().splitlines())
    asked = set(re.findall(r"\$\{(\w+):\?\}", (DEPLOY / "compose.yaml").read_text()))
    assert asked == set(env) - {"REDIS_BACKBONE_PASSWORD"}
    assert len({*env.values()}) == len(env)
    assert all(re.fullmatch("[0-9a-f]{48}", password) for password in env.values())
    assert (made / ".env").stat().st_mode & 0o077 == 0
    users = (made / "redis-users.acl").read_text()
    assert not any(password in users for password in env.values())
    before = (made / ".env").read_text()
    assert shell(made / "passwords.sh").returncode == 1
    assert (made / ".env").read_text() == before


def test_redis_knows_the_users_with_the_passwords_that_were_made(made: Path):
    env = dict(line.split("=") for line in (made / ".env").read_text().splitlines())
    users = made / "redis-users.acl"
    # (The test's own server is asked without a name whether it is there.)
    users.write_text(users.read_text().replace("user default off", "user default on nopass ~* &* +@all"))
    with EmbeddedRedis(None, "--aclfile", str(users)) as server:
        for name in ("backbone", "sockets", "web"):
            password = env[f"REDIS_{name.upper()}_PASSWORD"]
            with redis.Redis(unix_socket_path=str(server.socket), username=name, password=password) as client:
                assert client.ping()
        with redis.Redis(unix_socket_path=str(server.socket), username="health", password="any") as client:
            assert client.ping()
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.get("realtime:layout")


def test_images_are_pinned_by_the_digest_that_the_registry_says(tmp_path: Path):
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\n" + 'echo "$4" >> "$0.asked"; echo "sha256:' + "a" * 64 + '"\n')
    docker.chmod(0o755)
    done = shell(DEPLOY / "pin-images.sh", PATH=f"{tmp_path}:/usr/bin:/bin")
    pinned = dict(line.split("=") for line in done.stdout.splitlines())
    compose = (DEPLOY / "compose.yaml").read_text()
    defaults = dict(re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", compose))
    assert all(re.fullmatch(r"[a-z/]+:[\w.-]+@sha256:[0-9a-f]{64}", image) for image in defaults.values())
    tags = {name: image.partition("@")[0] for name, image in defaults.items()}
    assert pinned == {name: f"{tag}@sha256:{'a' * 64}" for name, tag in tags.items()}
    assert Path(f"{docker}.asked").read_text().split() == [tags[name] for name in pinned]
    [(base, image)] = re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert defaults[base] == image
    docker.write_text("#!/bin/sh\nexit 1\n")
    assert shell(DEPLOY / "pin-images.sh", PATH=f"{tmp_path}:/usr/bin:/bin").returncode != 0
