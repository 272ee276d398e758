"""`deploy/`, as far as that can be told without an engine or a cluster: every file is what its reader expects, and
every command, setting, port and path in it exists here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import yaml
from django.core.management import get_commands

from dev.embedded_redis import EmbeddedRedis
from realtime.conf import Conf
from realtime.connections.drain import LAST_SECONDS
from realtime.protocol.namespaces import namespaces
from realtime.server.uvicorn_server import SHUTDOWN_SECONDS
from tests.e2e.harness import ROOT
from tests.e2e.test_acl import EVERYWHERE
from tests.example_environment import variables
from tests.test_dockerfile import ARGUMENTS, STAGES

DEPLOY = ROOT / "deploy"
SETTINGS_PAGE = (ROOT / "docs" / "settings.md").read_text()
OURS = {
    "runsockets": "sockets",
    "runbridge": "sockets",
    "runrecorder": "web",
    "runweb": "web",
    "migrate": "web",
}
"""Command and image."""
PORTS = {target: int(STAGES[target].last("EXPOSE")) for target in ("sockets", "web")}


def is_documented(name: str) -> bool:
    """In docs/settings.md: by its whole name, or below a heading that says what stands before it."""
    return f"`{name}`" in SETTINGS_PAGE or f"`{name.removeprefix('REALTIME_')}`" in SETTINGS_PAGE


def leaving_takes(env: Mapping[str, str]) -> float:
    """Seconds that a socket server needs to end in good order."""
    return float(env["REALTIME_DRAIN_SECONDS"]) + LAST_SECONDS + SHUTDOWN_SECONDS


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def command_of(words: list[str]) -> str:
    python, manage, command, *_ = words
    assert (Path(python).name, Path(manage).name) == ("python", "manage.py")
    assert command in get_commands()
    return command


# --- Environment files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*variables()])
def test_variable_of_the_example_is_documented(name: str):
    assert is_documented(name)


def test_socket_side_gets_nothing_that_only_the_web_side_needs():
    assert not {"SECRET_KEY", "DATABASE_URL"} & set(variables("realtime.env.example"))


# --- Compose ----------------------------------------------------------------------------------------------

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OWN = {name: service for name, service in SERVICES.items() if "build" in service}


def test_compose_file_is_one():
    tool = Path(sys.executable).parent / "check-jsonschema"
    command = [tool, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_runs_everything_twice_that_must_be_there_while_the_other_restarts():
    commands = [command_of(service["command"]) for service in OWN.values()]
    assert sorted(commands) == ["migrate", "runbridge", "runrecorder", "runsockets", "runsockets", "runweb"]
    assert OWN["bridge"]["deploy"]["replicas"] == 2
    assert set(SERVICES) - set(OWN) == {"proxy", "redis", "postgres"}


@pytest.mark.parametrize("name", OWN)
def test_service_of_compose(name: str):
    service = OWN[name]
    target = OURS[command_of(service["command"])]
    arguments = {name: f"${{{name}:-{default}}}" for name, default in ARGUMENTS.items()}
    assert service["build"] == {"context": "..", "target": target, "args": arguments}
    for file in service["env_file"]:
        assert (DEPLOY / f"{file}.example").exists()
    assert ("web.env" in service["env_file"]) == (target == "web")
    assert all(is_documented(variable) for variable in service["environment"])
    assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
    assert set(service["depends_on"]) <= set(SERVICES)
    assert "healthcheck" in service or "HEALTHCHECK" in dict(STAGES[target].instructions)


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_confined(name: str):
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "/tmp" in {place.partition(":")[0] for place in service["tmpfs"]}
    assert all(re.search(r":size=\d+m$", place) for place in service["tmpfs"])
    assert "user" in service or int(STAGES[service["build"]["target"]].last("USER"))


@pytest.mark.parametrize("name", SERVICES)
def test_no_command_line_has_a_secret(name: str):
    service = SERVICES[name]
    lines = [service.get("command", ""), service.get("healthcheck", {}).get("test", "")]
    assert not re.search(r"\$\{|PASSWORD|SECRET|KEY", str(lines))


def test_redis_of_compose_has_a_user_for_each_role():
    assert not re.search("requirepass|REDIS_PASSWORD", (DEPLOY / "compose.yaml").read_text())
    for service in OWN.values():
        user = {"sockets": "sockets", "web": "web"}[service["build"]["target"]]
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
    assert defaults.items() >= ARGUMENTS.items()
    docker.write_text("#!/bin/sh\nexit 1\n")
    assert shell(DEPLOY / "pin-images.sh", PATH=f"{tmp_path}:/usr/bin:/bin").returncode != 0


@pytest.mark.parametrize("name", ["redis", "postgres", "sockets-one", "sockets-two"])
def test_what_others_wait_for_says_whether_it_is_healthy(name: str):
    assert SERVICES[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("name", ["sockets-one", "sockets-two"])
def test_socket_server_of_compose_is_not_killed_while_it_drains(name: str):
    grace = seconds(SERVICES[name]["stop_grace_period"])
    assert grace > leaving_takes(variables("realtime.env.example"))
    assert f":{PORTS['sockets']}/readyz" in SERVICES[name]["healthcheck"]["test"][-1]


def test_redis_of_compose_forgets_nothing():
    command = SERVICES["redis"]["command"]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert any(volume.endswith(":/data") for volume in SERVICES["redis"]["volumes"])


def test_proxy_of_compose_leads_to_what_is_there():
    proxy = SERVICES["proxy"]
    configuration = (DEPLOY / "haproxy.cfg").read_text()
    for variable, address in proxy["environment"].items():
        assert f'"${{{variable}-' in configuration
        service, _, port = address.partition(":")
        assert int(port) == PORTS[OURS[command_of(SERVICES[service]["command"])]]
    for ports in proxy["ports"]:
        assert f":{ports.partition(':')[2]}" in configuration
    for volume in proxy["volumes"]:
        here, there, _ = volume.split(":")
        assert (DEPLOY / here).exists() or there in configuration


def test_only_the_proxy_is_reached_from_outside():
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]


# --- Kubernetes -------------------------------------------------------------------------------------------

FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
MANIFESTS: dict[tuple[str, str], dict[str, Any]] = {
    (manifest["kind"], manifest["metadata"]["name"]): manifest
    for file in FILES
    if file.name != "kustomization.yaml"
    for manifest in yaml.safe_load_all(file.read_text())
}
DEPLOYMENTS = [name for kind, name in MANIFESTS if kind in {"Deployment", "Job"}]
MIGRATE = ["python", "manage.py", "migrate", "--noinput"]
VERSIONS = ["1.31", kubernetes_validate.latest_version()]


def pod(name: str) -> dict[str, Any]:
    kind = "Job" if ("Job", name) in MANIFESTS else "Deployment"
    found: dict[str, Any] = MANIFESTS[kind, name]["spec"]["template"]["spec"]
    return found


def containers(name: str) -> Iterator[dict[str, Any]]:
    yield from pod(name).get("initContainers", ())
    yield from pod(name)["containers"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "manifest", MANIFESTS.values(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}"
)
def test_manifest_is_what_kubernetes_expects(manifest: dict[str, Any], version: str):
    kubernetes_validate.validate(manifest, version, strict=True)


def test_kustomization_names_every_file_and_image():
    assert sorted([*KUSTOMIZATION["resources"], "kustomization.yaml"]) == [file.name for file in FILES]
    used = {container["image"] for name in DEPLOYMENTS for container in containers(name)}
    assert used == {image["name"] for image in KUSTOMIZATION["images"]}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_pods_may_do_nothing_that_they_need_not(name: str):
    spec = pod(name)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"]
    for container in containers(name):
        assert spec["securityContext"]["runAsUser"] == int(STAGES[image_of(container)].last("USER"))
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def image_of(container: Mapping[str, Any]) -> str:
    return {"realtime-sockets": "sockets", "realtime-web": "web"}[container["image"]]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_containers_run_what_exists_with_settings_that_exist(name: str):
    for container in containers(name):
        assert OURS[command_of(container["command"])] == image_of(container)
        for port in container.get("ports", ()):
            if port["name"] == "metrics":
                assert container["command"][-2:] == ["--metrics-port", str(port["containerPort"])]
            else:
                assert port["containerPort"] == PORTS[image_of(container)]
        sources = [next(iter(source.items())) for source in container["envFrom"]]
        for kind, source in sources:
            # Secrets are made by hand: none is in a file.
            assert kind == "secretRef" or ("ConfigMap", source["name"]) in MANIFESTS
        assert (("secretRef", {"name": "realtime-web"}) in sources) == (image_of(container) == "web")
    assert "Secret" not in {kind for kind, _ in MANIFESTS}


def test_database_is_migrated_by_one_job_for_which_the_web_side_waits():
    migrating = [name for name in DEPLOYMENTS for each in containers(name) if each["command"] == MIGRATE]
    assert migrating == ["realtime-migrate"]
    spec = MANIFESTS["Job", "realtime-migrate"]["spec"]
    assert (spec["parallelism"], spec["completions"]) == (1, 1)
    for name in ("realtime-web", "realtime-recorder"):
        [waiting] = pod(name)["initContainers"]
        assert waiting["command"] == ["python", "manage.py", "migrate", "--check"]


def test_settings_in_the_maps_are_documented_and_no_secrets():
    for kind, name in MANIFESTS:
        if kind == "ConfigMap":
            data = MANIFESTS[kind, name]["data"]
            assert all(is_documented(variable) for variable in data)
            assert not [variable for variable in data if re.search("KEY|TOKEN|_URL|PASSWORD", variable)]


def test_every_setting_of_the_examples_is_in_a_map_or_named_as_a_secret():
    text = (DEPLOY / "kubernetes" / "settings.yaml").read_text()
    assert [name for name in variables() if name not in text] == []


def test_socket_server_is_asked_whether_it_can_deliver_and_killed_only_when_it_is_dead():
    [container] = containers("realtime-sockets")
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}


def test_socket_server_of_kubernetes_is_not_killed_while_it_drains():
    [container] = containers("realtime-sockets")
    [sleep, before] = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    env = MANIFESTS["ConfigMap", "realtime"]["data"]
    assert pod("realtime-sockets")["terminationGracePeriodSeconds"] > float(before) + leaving_takes(env)
    # Nobody new is sent to it before it stops letting people in.
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] <= float(before)


def test_upgrade_takes_no_pod_away_before_the_new_one_is_ready():
    for name in ("realtime-sockets", "realtime-bridge", "realtime-web"):
        spec = MANIFESTS["Deployment", name]["spec"]
        assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        budget = MANIFESTS["PodDisruptionBudget", name]["spec"]
        assert budget["selector"] == spec["selector"]
        assert budget["maxUnavailable"] == 1


def test_socket_servers_are_as_many_as_their_connections_need():
    spec = MANIFESTS["HorizontalPodAutoscaler", "realtime-sockets"]["spec"]
    assert ("Deployment", spec["scaleTargetRef"]["name"]) in MANIFESTS
    assert spec["minReplicas"] >= 2
    assert "replicas" not in MANIFESTS["Deployment", "realtime-sockets"]["spec"]
    [metric] = spec["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f'"{name}"' in (ROOT / "realtime/telemetry/metrics.py").read_text()


@pytest.mark.parametrize("name", ["realtime-sockets", "realtime-web"])
def test_service_leads_to_its_pods(name: str):
    service, spec = MANIFESTS["Service", name]["spec"], MANIFESTS["Deployment", name]["spec"]
    assert service["selector"] == spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert service["ports"][0]["targetPort"] == "http"


def ingress() -> dict[str, Any]:
    """The example of docs/deployment.md."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    [text] = [
        block for block in re.findall(r"(?ms)^ *```yaml\n(.*?)^ *```", page) if "kind: Ingress" in block
    ]
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_ingress_of_the_page_is_what_kubernetes_expects(version: str):
    kubernetes_validate.validate(ingress(), version, strict=True)


def test_ingress_of_the_page_passes_the_paths_of_the_namespaces_and_no_other_to_socket_servers():
    [rule] = ingress()["spec"]["rules"]
    leads: dict[str, set[tuple[str, str]]] = {}
    for path in rule["http"]["paths"]:
        service = path["backend"]["service"]
        assert service["port"] == {"name": MANIFESTS["Service", service["name"]]["spec"]["ports"][0]["name"]}
        leads.setdefault(service["name"], set()).add((path["pathType"], path["path"]))
    paths = {f"/{namespace}{slash}" for namespace in namespaces() for slash in ("", "/")}
    assert leads["realtime-sockets"] == {("Exact", path) for path in paths}
    assert {path for _, path in leads["realtime-web"]} == {"/admin/", "/token/", "/static/"}


@pytest.mark.parametrize("file", ["haproxy.cfg", "nginx.conf"])
def test_proxy_knows_every_namespace(file: str):
    text = (DEPLOY / file).read_text()
    assert all(re.search(rf"\b{namespace}\b", text) for namespace in namespaces())


def test_network_policy_knows_every_deployment():
    [expression] = MANIFESTS["NetworkPolicy", "realtime"]["spec"]["podSelector"]["matchExpressions"]
    assert sorted(expression["values"]) == sorted(DEPLOYMENTS)


# --- systemd ----------------------------------------------------------------------------------------------

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PYTHON, PROJECT = "/opt/realtime/venv/bin/python", "/opt/realtime"


def options(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_unit_runs_what_exists_with_files_that_exist_and_no_rights(unit: Path):
    given = options(unit)
    for line in given["ExecStart"] + given.get("ExecStartPre", []):
        assert line.startswith(f"{PYTHON} manage.py ")
        command = command_of(line.split())
        files = [Path(file).name for file in given["EnvironmentFile"]]
        assert all((DEPLOY / f"{file}.example").exists() for file in files)
        assert ("web.env" in files) == (OURS[command] == "web")
    for name, value in {
        "DynamicUser": "yes",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "CapabilityBoundingSet": "",
    }.items():
        assert given[name] == [value]
    assert given["MemoryMax"]
    assert given["Restart"] == ["always"]
    # Nothing tells systemd when it is ready.
    assert given["Type"] == ["exec"]


def test_socket_server_of_systemd_is_not_killed_while_it_drains():
    given = options(DEPLOY / "systemd" / "realtime-sockets@.service")
    assert float(given["TimeoutStopSec"][0]) > leaving_takes(variables("realtime.env.example"))
    assert "SOCKETS_PORT=%i" in given["Environment"]


@pytest.mark.needs_tools
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_the_unit(unit: Path, tmp_path: Path):
    copy = tmp_path / unit.name.replace("@", "@8001")
    copy.write_text(unit.read_text().replace(PYTHON, sys.executable).replace(PROJECT, str(ROOT)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "realtime" in line]
    assert (done.returncode, ours) == (0, [])


# --- All together -----------------------------------------------------------------------------------------


def test_defaults_drain_within_what_the_examples_wait_for():
    assert Conf().drain_seconds == float(variables()["REALTIME_DRAIN_SECONDS"])


def test_page_names_every_file():
    page = (ROOT / "docs" / "deployment.md").read_text()
    for file in ("compose.yaml", "haproxy.cfg", "nginx.conf", "kubernetes/", "systemd/"):
        assert f"deploy/{file}" in page
