"""`make adopt`: goes through docs/adopting.md as a team would, and says where the page and the package differ."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from pathlib import Path

from realtime.testing.embedded_redis import EmbeddedRedis, NoServer
from tests.adopt.page import Unreadable
from tests.adopt.walk import Walk
from tests.adopt.workshop import Stopped, Workshop
from tests.e2e.harness import ROOT, free_port

BEFORE = Path(__file__).with_name("project.md")
PAGE = ROOT / "docs" / "adopting.md"


def say(text: str) -> None:
    """Some progress, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def adopt(folder: Path, redis_url: str) -> None:
    """Make the packages and a project, and follow the page. Raises `Stopped` with the line of the page."""
    workshop = Workshop(folder, redis_url)
    say("Building the wheel, the npm package and an empty environment ...\n")
    workshop.build()
    with Walk(workshop, say) as walk:
        walk.through(BEFORE)
        walk.through(PAGE)
        workshop.must_be_apart()


def main() -> int:
    """Returns the exit status."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # else what a background job starts ignores Ctrl-C
    started, port = time.monotonic(), free_port()
    on_loopback = ("--port", str(port), "--bind", "127.0.0.1")
    try:
        with tempfile.TemporaryDirectory(prefix="adopt-") as folder, EmbeddedRedis(None, *on_loopback):
            adopt(Path(folder), f"redis://127.0.0.1:{port}/0")
    except (Stopped, Unreadable, NoServer) as error:
        say(f"\n\nmake adopt has failed. {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    say(f"docs/adopting.md does what it says ({time.monotonic() - started:.0f} s).\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
