"""`deploy/environment.example`, filled in as somebody does who deploys this."""

from __future__ import annotations

import os

from tests.e2e.harness import ROOT

FILE = ROOT / "deploy" / "environment.example"


def variables() -> dict[str, str]:
    """As they stand in the file."""
    lines = FILE.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def example() -> dict[str, str]:
    """A process' whole environment, with keys that are not the example's."""
    values = {name: value.replace("change-me", "b8f2c7d1e9") for name, value in variables().items()}
    return {"PATH": os.environ["PATH"], **values}
