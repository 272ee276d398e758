"""A real browser for the tests that need one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def require_chromium() -> None:
    """Skip where there is none; under CI that is a failure."""
    if not CHROMIUM.exists():
        missing = f"{CHROMIUM} is missing: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)


def require_desk() -> None:
    """Skip where the demo's page was not built; under CI that is a failure."""
    if not (ROOT / "demo/static/demo/desk.js").exists():
        missing = "the demo's page is not built: make desk"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
