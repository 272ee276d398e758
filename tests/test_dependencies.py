"""What we build on is not known to be vulnerable. `make audit` asks the registries; this holds without them."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.e2e.harness import ROOT

SAFE = {
    "channels": "4.0",  # CVE-2020-35681: session leak
    "daphne": "4.2.2",  # CVE-2026-44545: frames without limit; CVE-2026-44546: smuggled headers
    "django": "5.2.14",  # CVE-2026-5766: denial of service over ASGI
    "djangorestframework-simplejwt": "5.4",  # CVE-2024-22513: disabled users
    "pyjwt": "2.15",  # CVE-2026-48523, CVE-2026-102267, CVE-2026-102272 to 102275: algorithms, JWKS redirects
}
"""The first version that none of the advisories known to us (November 2026) concerns."""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line]
    return {_normal(name): Version(version) for name, version in pairs}


@pytest.fixture(scope="module")
def required() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {_normal(each.name): each for each in map(Requirement, project["dependencies"])}


@pytest.mark.parametrize("name", SAFE)
def test_version_we_test_with_is_safe(pinned: dict[str, Version], name: str):
    assert pinned[name] >= Version(SAFE[name])


@pytest.mark.parametrize("name", SAFE)
def test_nobody_can_install_us_with_a_version_that_is_not(required: dict[str, Requirement], name: str):
    too_old = [
        version
        for version in ("0.1", "1.0", "2.0", "2.14", "3.0", "4.2.1", "5.2.13")
        if Version(version) < Version(SAFE[name])
    ]
    assert not list(required[name].specifier.filter(too_old, prereleases=True))
    assert list(required[name].specifier.filter([SAFE[name], "4.3.2", "5.2.19", "5.5.1", "2.15.1"]))
