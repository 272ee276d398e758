"""`manage.py runoutbox`: sends what the requests of a backbone could not send."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from realtime.outbox.listening import POLL
from realtime.outbox.relay import NoTable, Numbers, Relay, Relays
from realtime.outbox.table import default_database
from realtime.telemetry.logs import write_facts

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Command(BaseCommand):
    help = (
        "Send the messages of the outbox that no process has sent. Prints 'ready' once the databases answer."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add_database_option(parser)
        parser.add_argument(
            "--metrics-host", default="127.0.0.1", help="address for /metrics (default %(default)s)"
        )
        parser.add_argument("--metrics-port", type=int, help="serve /metrics on this port (default: on none)")

    def handle(
        self, *, databases: list[str] | None, metrics_host: str, metrics_port: int | None, **_: Any
    ) -> None:
        write_facts()
        stopping = threading.Event()
        numbers: Callable[[str], Numbers] = lambda _: Numbers()  # noqa: E731
        aliases = known_databases(databases)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_held_signals())
            if metrics_port is not None:
                numbers = _serve_metrics(stack, metrics_host, metrics_port)
            relays = [Relay(alias, stopping, numbers(alias)) for alias in aliases]
            running = Relays(relays, stopping, self._ready)
            running.start()
            while running.are_running and not _is_told_to_stop():
                pass
            try:
                running.stop()
            except NoTable as error:
                raise CommandError(str(error), returncode=2) from error

    def _ready(self) -> None:
        self.stdout.write("ready")
        self.stdout.flush()


def _is_told_to_stop() -> bool:
    """Wait for a signal, for a moment."""
    found = signal.sigtimedwait(SIGNALS, POLL)
    # Suspended (SIGSTOP) and continued after that moment, CPython answers with what is no signal.
    return found is not None and found.si_signo in SIGNALS


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Let signals wait until the command asks for them, in this thread and in those that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def add_database_option(parser: CommandParser) -> None:
    """`--database`, for `known_databases`."""
    parser.add_argument(
        "--database",
        action="append",
        dest="databases",
        metavar="ALIAS",
        help="a database with an outbox; may be given several times (default: the one of its table)",
    )


def known_databases(given: Sequence[str] | None) -> list[str]:
    """These aliases, each once, or that of the table. Raises `CommandError` for one that is not in the settings."""
    aliases = list(dict.fromkeys(given or [default_database()]))
    for alias in aliases:
        if alias not in settings.DATABASES:
            known = ", ".join(sorted(settings.DATABASES))
            raise CommandError(f"expected an alias of DATABASES ({known}), got {alias!r}", returncode=2)
    return aliases


def _serve_metrics(stack: contextlib.ExitStack, host: str, port: int) -> Callable[[str], Numbers]:
    """Serve them until the stack is closed; returns what makes the numbers of a database that are shown."""
    if not 0 <= port < 65536:
        raise CommandError(f"--metrics-port must be between 0 and 65535, got {port}", returncode=2)
    try:
        from realtime.outbox.metrics import ShownNumbers  # noqa: PLC0415  (a backbone may lack the library)
        from realtime.telemetry import prometheus  # noqa: PLC0415
    except ImportError as error:
        raise CommandError(
            "--metrics-port needs prometheus-client: pip install prometheus-client", returncode=2
        ) from error
    try:
        stack.enter_context(prometheus.port(host, port))
    except OSError as error:
        raise CommandError(f"cannot listen on {host}:{port}: {error.strerror}", returncode=2) from error
    return ShownNumbers
