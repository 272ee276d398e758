"""What the commands of the benchmark have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Container
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def choice(known: Container[str]) -> Callable[[str], list[str]]:
    """Return the parser of a comma-separated list of known names."""

    def choose(text: str) -> list[str]:
        chosen = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
        return chosen

    return choose
