"""The Dockerfile and `deploy/`: linters accept every file, what the files name exists, and their numbers fit ours."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes_validate
import pytest
import yaml
from django.core.management import get_commands

from realtime.cli import COMMANDS, command_of
from realtime.conf import Conf
from realtime.connections.drain import LAST_SECONDS
from realtime.protocol.namespaces import namespaces
from realtime.server.uvicorn_server import SHUTDOWN_SECONDS
from tests.blocks import only
from tests.dockerfile import Step, lineage, parse
from tests.e2e.harness import ROOT
from tests.example_environment import variables

DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SETTINGS_PAGE = (ROOT / "docs" / "settings.md").read_text()
SIDES = {"sockets": "sockets", "bridge": "sockets", "recorder": "web", "web": "web", "migrate": "web"}
"""The image of each command."""
PORTS = {"sockets": 8001, "web": 8000}

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OWN = {name: service for name, service in SERVICES.items() if "build" in service}

FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
MANIFESTS: dict[tuple[str, str], dict[str, Any]] = {
    (manifest["kind"], manifest["metadata"]["name"]): manifest
    for file in FILES
    if file.name != "kustomization.yaml"
    for manifest in yaml.safe_load_all(file.read_text())
}
PODS = {
    name: manifest["spec"]["template"]["spec"]
    for (kind, name), manifest in MANIFESTS.items()
    if kind in {"Deployment", "Job"}
}
VERSIONS = ["1.31", kubernetes_validate.latest_version()]

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SCRIPT, PROJECT = "/opt/realtime/venv/bin/realtime", "/opt/realtime"


def containers(name: str) -> Iterator[dict[str, Any]]:
    yield from PODS[name].get("initContainers", ())
    yield from PODS[name]["containers"]


def options(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def is_documented(name: str) -> bool:
    """On docs/settings.md, by its whole name or without its prefix."""
    return f"`{name}`" in SETTINGS_PAGE or f"`{name.removeprefix('REALTIME_')}`" in SETTINGS_PAGE


# --- Linters ----------------------------------------------------------------------------------------------


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def tool(name: str) -> Path:
    return Path(sys.executable).parent / name


def test_dockerfile_is_linted():
    run(tool("hadolint"), ROOT / "Dockerfile")


def test_compose_file_follows_its_schema():
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def ingress() -> dict[str, Any]:
    """The example of docs/deployment.md."""
    found: dict[str, Any] = yaml.safe_load(only("deployment.md", "yaml", "kind: Ingress"))
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [*MANIFESTS.values(), ingress()], ids=lambda each: each["kind"])
def test_manifest_follows_the_schema_of_kubernetes(manifest: dict[str, Any], version: str):
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.needs_tools
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_the_unit_and_finds_it_confined(unit: Path, tmp_path: Path):
    copy = tmp_path / unit.name.replace("@", "@8001")
    copy.write_text(unit.read_text().replace(SCRIPT, sys.executable).replace(PROJECT, str(ROOT)))
    run("systemd-analyze", "verify", "--man=no", copy)
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", copy)


# --- Layers of the images -------------------------------------------------------------------------------

STAGES = parse(DOCKERFILE)


def is_of_requirements(step: Step) -> bool:
    return step.words[0].startswith("requirements/")


@pytest.mark.parametrize("name", STAGES)
def test_packages_are_installed_before_any_source_is_copied(name: str):
    """A change of a source file installs nothing again: the layers below it come from Docker's cache."""
    steps = lineage(STAGES, name)
    installs = [
        number for number, step in enumerate(steps) if step.name == "RUN" and "--requirement" in step.text
    ]
    copies = [
        number
        for number, step in enumerate(steps)
        if step.name == "COPY" and (step.stage or not is_of_requirements(step))
    ]
    assert not (installs and copies) or max(installs) < min(copies)


@pytest.mark.parametrize("name", STAGES)
def test_stage_copies_the_requirements_that_it_installs_and_no_others(name: str):
    copied = [
        word
        for step in STAGES[name].steps
        if step.name == "COPY" and is_of_requirements(step)
        for word in step.words[:-1]
    ]
    installed = [
        found
        for step in STAGES[name].steps
        if step.name == "RUN"
        for found in re.findall(r'--requirement "?([^\s"]+)', step.text)
    ]
    assert copied == installed
    assert all(re.fullmatch(r"requirements/(\w+\.txt|\$\{REQUIREMENTS\})", file) for file in copied)


def test_sources_are_copied_into_one_stage():
    sources = [
        name
        for name, stage in STAGES.items()
        if any(step.name == "COPY" and "realtime" in step.words for step in stage.steps)
    ]
    assert sources == ["wheel"]


# --- Every process that is deployed ---------------------------------------------------------------------


class Deployed(NamedTuple):
    command: list[str]
    image: str
    settings: set[str]
    """The files, maps and secrets that its environment comes from."""


def deployed() -> Iterator[Any]:
    for name, service in OWN.items():
        settings = {file.removesuffix(".env") for file in service["env_file"]}
        yield pytest.param(Deployed(service["command"], service["build"]["target"], settings), id=name)
    for name in PODS:
        for each in containers(name):
            sources = {next(iter(source.values()))["name"] for source in each["envFrom"]}
            image = each["image"].removeprefix("realtime-")
            settings = {source.removeprefix("realtime-") for source in sources}
            yield pytest.param(Deployed(each["command"], image, settings), id=f"{name} {each['name']}")
    for unit in UNITS:
        given = options(unit)
        settings = {Path(file).stem for file in given["EnvironmentFile"]}
        for line in given["ExecStart"] + given.get("ExecStartPre", []):
            image = SIDES[line.split()[1]]
            yield pytest.param(Deployed(line.split(), image, settings), id=unit.name)


@pytest.mark.parametrize("process", [*deployed()])
def test_process_runs_a_command_that_exists_with_the_settings_of_its_side(process: Deployed):
    script, command, *_ = process.command
    assert script in {"realtime", SCRIPT}
    assert command_of(command).name in get_commands()
    assert process.image == SIDES[command]
    assert command_of(command).settings == f"realtime.settings.{process.image}"
    assert process.settings == ({"realtime", "web"} if process.image == "web" else {"realtime"})


def test_commands_of_the_images_exist():
    commands = re.findall(r'^CMD \["realtime", "(\w+)"\]', DOCKERFILE, re.MULTILINE)
    assert {SIDES[command] for command in commands} == {*PORTS}
    assert {*commands} <= {*COMMANDS}


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            *variables(),
            *(variable for service in OWN.values() for variable in service["environment"]),
            *(
                variable
                for (kind, _), each in MANIFESTS.items()
                if kind == "ConfigMap"
                for variable in each["data"]
            ),
        }
    ),
)
def test_setting_of_an_example_is_documented(name: str):
    assert is_documented(name)


def test_socket_side_gets_nothing_that_only_the_web_side_needs():
    assert not {"SECRET_KEY", "DATABASE_URL"} & set(variables("realtime.env.example"))


def test_every_setting_of_the_examples_is_in_a_map_or_named_as_a_secret():
    text = (DEPLOY / "kubernetes" / "settings.yaml").read_text()
    assert [name for name in variables() if name not in text] == []


# --- Confined, pinned, without secrets --------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_service_of_compose_is_confined_and_has_no_secret_on_its_command_line(name: str):
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit"} <= service.keys()
    assert all(re.search(r":size=\d+m$", place) for place in service["tmpfs"])
    assert "user" in service or name in OWN
    assert ("ports" in service) is (name == "proxy")
    lines = [service.get("command", ""), service.get("healthcheck", {}).get("test", "")]
    assert not re.search(r"\$\{|PASSWORD|SECRET|KEY", str(lines))


@pytest.mark.parametrize("name", PODS)
def test_pod_is_confined(name: str):
    [user] = set(re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE))
    assert PODS[name]["automountServiceAccountToken"] is False
    assert PODS[name]["securityContext"]["runAsNonRoot"]
    assert PODS[name]["securityContext"]["runAsUser"] == int(user)
    for container in containers(name):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_manifests_hold_no_secrets():
    assert "Secret" not in {kind for kind, _ in MANIFESTS}
    for (kind, _), manifest in MANIFESTS.items():
        if kind == "ConfigMap":
            assert not re.search("KEY|TOKEN|_URL|PASSWORD", " ".join(manifest["data"]))


def test_nothing_is_installed_into_an_image_without_a_hash():
    installs = re.findall(r"pip (?:--python \S+ )?(?:install|wheel) .*", DOCKERFILE)
    assert len(installs) == 6
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)


# --- Upgrades ---------------------------------------------------------------------------------------------


def leaving_takes(env: Mapping[str, str]) -> float:
    """Seconds that a socket server needs to end in good order."""
    return float(env["REALTIME_DRAIN_SECONDS"]) + LAST_SECONDS + SHUTDOWN_SECONDS


@pytest.mark.parametrize("name", ["sockets-one", "sockets-two"])
def test_socket_server_of_compose_is_not_killed_while_it_drains(name: str):
    grace = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert grace > leaving_takes(variables("realtime.env.example"))


def test_socket_server_of_systemd_is_not_killed_while_it_drains():
    given = options(DEPLOY / "systemd" / "realtime-sockets@.service")
    assert float(given["TimeoutStopSec"][0]) > leaving_takes(variables("realtime.env.example"))


def test_socket_server_of_kubernetes_is_not_killed_while_it_drains():
    [container] = containers("realtime-sockets")
    [sleep, before] = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    env = MANIFESTS["ConfigMap", "realtime"]["data"]
    grace = PODS["realtime-sockets"]["terminationGracePeriodSeconds"]
    assert grace > float(before) + leaving_takes(env)
    # It gets no new connections by the time it refuses them.
    assert container["readinessProbe"]["periodSeconds"] <= float(before)


def test_defaults_drain_within_the_grace_periods_of_the_examples():
    assert Conf().drain_seconds == float(variables()["REALTIME_DRAIN_SECONDS"])


def test_upgrade_takes_no_pod_away_before_the_new_one_is_ready():
    for name in ("realtime-sockets", "realtime-bridge", "realtime-web"):
        spec = MANIFESTS["Deployment", name]["spec"]
        assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        budget = MANIFESTS["PodDisruptionBudget", name]["spec"]
        assert budget["selector"] == spec["selector"]
        assert budget["maxUnavailable"] == 1


def test_database_is_migrated_by_one_job_for_which_the_web_side_waits():
    job = MANIFESTS["Job", "realtime-migrate"]["spec"]
    assert (job["parallelism"], job["completions"]) == (1, 1)
    for name in ("realtime-web", "realtime-recorder"):
        [waiting] = PODS[name]["initContainers"]
        assert waiting["command"] == ["realtime", "migrate", "--check"]


# --- One file and another ---------------------------------------------------------------------------------


def test_kustomization_names_every_file_and_image():
    assert sorted([*KUSTOMIZATION["resources"], "kustomization.yaml"]) == [file.name for file in FILES]
    used = {container["image"] for name in PODS for container in containers(name)}
    assert used == {image["name"] for image in KUSTOMIZATION["images"]}


def test_proxy_of_compose_leads_to_what_is_there():
    proxy = SERVICES["proxy"]
    configuration = (DEPLOY / "haproxy.cfg").read_text()
    for variable, address in proxy["environment"].items():
        assert f'"${{{variable}-' in configuration
        service, _, port = address.partition(":")
        assert int(port) == PORTS[SERVICES[service]["build"]["target"]]
    for ports in proxy["ports"]:
        assert f":{ports.partition(':')[2]}" in configuration


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
    assert sorted(expression["values"]) == sorted(PODS)
