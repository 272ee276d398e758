"""Log lines: their format, and what must not be in them.

Modules log an event and its facts: `logger.info("connection opened", extra={...})`. They do not name the connection
that a line is about: the task that logs it works for a connection (`speak_for`), or for none. A context variable would
also be inherited by the tasks that the first connection of a process starts for all connections.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def spelled(error: BaseException) -> str:
    """`ConnectionError('refused')`, like `repr`, which for errors of redis-py gives only the type."""
    return f"{type(error).__name__}({str(error)!r})"


class ConsoleFormatter(logging.Formatter):
    """Formats a record as one line: time, level, logger, message, then the extra facts as `name=value`.

    Values are written with `repr`, so that nothing that a client sends can begin a new line.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s  %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        facts = "".join(f" {name}={value!r}" for name, value in vars(record).items() if name not in _STANDARD)
        return super().formatMessage(record) + facts


def write_facts() -> None:
    """Write the facts of lines that no handler of the project takes.

    Django's default leaves them to Python's last resort, which writes the message of a warning and nothing else.
    """
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(ConsoleFormatter())


class WithoutTraceback(logging.Filter):
    """Keeps the text of an error, and drops its stack."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            record.msg = f"{record.getMessage().rstrip(':')}: {spelled(record.exc_info[1])}"
            record.args = ()
            record.exc_info = record.exc_text = None
        return True


class WithoutRequest(logging.Filter):
    """Removes everything about a request but its path, since a query string may hold a token.

    Django attaches the request to what it logs, and the `repr` of a request contains the query string. A Referer that
    failed a CSRF check, and a path with an encoded question mark, contain it as well.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if vars(record).pop("request", None) is not None:
            record.msg = _QUERY.sub("?…", record.getMessage())
            record.args = ()
            if record.name.startswith("django.security"):  # a refused request, not a mistake in the code
                record.exc_info = record.exc_text = None
        return True


_QUERY = re.compile(r"\?[^\s'\"]+")


T = TypeVar("T")
R = TypeVar("R")


class Subject(Protocol):
    """Something that log lines are about."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What each of these lines says about it."""


_subjects: WeakKeyDictionary[asyncio.Task[Any], Subject] = WeakKeyDictionary()


def speak_for(subject: Subject) -> None:
    """Let every line that this task logs from now on be about `subject`; lines of tasks that it starts are not."""
    if (task := asyncio.current_task()) is not None:
        _subjects[task] = subject


_speaker: Subject | None = None
"""What lines are about while a function runs that no task runs."""


def speaking_for(subject: Subject, function: Callable[[T], R], argument: T) -> R:
    """Call a function outside any task, and let every line that it logs be about `subject`."""
    global _speaker
    before, _speaker = _speaker, subject
    try:
        return function(argument)
    finally:
        _speaker = before


class WithSubject(logging.Filter):
    """Adds the facts of the subject that a line is about."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no loop in this thread
            return True
        if (subject := _speaker if task is None else _subjects.get(task)) is not None:
            for name, value in _facts(subject).items():
                vars(record).setdefault(name, value)
        return True


def _facts(subject: Subject) -> Mapping[str, str]:
    """The facts; none if they cannot be told. An exception here would take the place of the one that is logged."""
    try:
        return subject.facts
    except Exception:
        return {}


def digest(namespace: str, user_id: str) -> str:
    """A digest that stands for a user in logs: a known user can be followed, and none is named."""
    return hashlib.sha256(f"{namespace}:{user_id}".encode()).hexdigest()[:12]
