"""The environment files of `deploy/`, filled in as for a deployment."""

from __future__ import annotations

import os

from tests.e2e.harness import ROOT

FILES = ("realtime.env.example", "web.env.example")


def variables(*names: str) -> dict[str, str]:
    """As they stand in the files."""
    lines = [line for name in names or FILES for line in (ROOT / "deploy" / name).read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def example(side: str) -> dict[str, str]:
    """The whole environment of a process of that side, with keys that are not the example's."""
    names = FILES[:1] if side == "sockets" else FILES
    values = {name: value.replace("change-me", "b8f2c7d1e9") for name, value in variables(*names).items()}
    return {"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": f"realtime.settings.{side}", **values}
