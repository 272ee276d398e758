"""A PostgreSQL of our own, from Debian's package `postgresql`: in a private folder, on a unix socket, gone with us.

`python -m tests.postgresql COMMAND …` runs a command with `DATABASE_URL` set to one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psycopg

from realtime.testing.embedded_redis import die_with

START_SECONDS = 30.0
_QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
"""Nothing here outlives the tests."""


class Cluster:
    """Context manager: a running server."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        assert found, "needs the Debian package postgresql"
        self._binaries = found[-1]
        # The server refuses to be root; the package brings a user for it.
        self._user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []}
        if os.geteuid() != 0:
            self._user = {}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="realtime-pg-"))
        if self._user:
            shutil.chown(self.directory, "postgres", "postgres")
        try:
            subprocess.run(
                [
                    self._binaries / "initdb",
                    *("--pgdata", self.directory / "data", "--username", "postgres"),
                    *("--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync"),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
                cwd=self.directory,
                **self._user,
            )
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        log = self.directory / "log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    self._binaries / "postgres",
                    *("-D", self.directory / "data", "-k", self.directory, "-c", "listen_addresses="),
                    *(word for setting in _QUICK for word in ("-c", setting)),
                ],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid(), signal.SIGQUIT),  # noqa: PLW1509
                **self._user,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server and every connection to it, at once."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
            self.process = None

    def url(self, database: str = "postgres") -> str:
        """What goes into `DATABASE_URL`."""
        return f"postgres://postgres@{quote(str(self.directory), safe='')}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self.directory), user="postgres", dbname=database, autocommit=True)

    def create(self, database: str) -> str:
        """A new database; returns its URL."""
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {database}")  # type: ignore[call-overload]
        return self.url(database)

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


def main() -> int:
    with Cluster() as cluster:
        env = {**os.environ, "DATABASE_URL": cluster.url()}
        return subprocess.run(sys.argv[1:], env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
