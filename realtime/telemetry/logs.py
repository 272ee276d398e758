"""How log lines look. Modules log an event and its facts: `logger.info("connection opened", extra={...})`.

Whose connection a line is about is not theirs to say: the task that logs it works for one (`speak_for`), or for none.
A context variable would also be inherited by what the first connection of a process starts for all others.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def spelled(error: BaseException) -> str:
    """`ConnectionError('refused')`, as `repr` has it for all but the errors of redis-py, where it is only a kind."""
    return f"{type(error).__name__}({str(error)!r})"


class ConsoleFormatter(logging.Formatter):
    """One line a record: time, level, logger, message, then the extra facts as `name=value`.

    Values are written with `repr`, so that nothing a client sends can start a line of its own.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s  %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        facts = "".join(f" {name}={value!r}" for name, value in vars(record).items() if name not in _STANDARD)
        return super().formatMessage(record) + facts


class WithoutTraceback(logging.Filter):
    """Keep the error's text, drop its stack."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            record.msg = f"{record.getMessage().rstrip(':')}: {spelled(record.exc_info[1])}"
            record.args = ()
            record.exc_info = record.exc_text = None
        return True


class WithoutRequest(logging.Filter):
    """Keep from the log what Django says of a request beside its path: a query string may be a token.

    Django attaches the request to what it logs, and its `repr` has the query string; so have a Referer that failed a
    CSRF check, and a path with an encoded question mark.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if vars(record).pop("request", None) is not None:
            record.msg = _QUERY.sub("?…", record.getMessage())
            record.args = ()
            if record.name.startswith("django.security"):  # a refusal, not a mistake of ours
                record.exc_info = record.exc_text = None
        return True


_QUERY = re.compile(r"\?[^\s'\"]+")


class Subject(Protocol):
    """Something that lines are about."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What they all say of it."""


_subjects: WeakKeyDictionary[asyncio.Task[Any], Subject] = WeakKeyDictionary()


def speak_for(subject: Subject) -> None:
    """From now on every line that this task logs is about `subject`; what other tasks log is not, even its own."""
    if (task := asyncio.current_task()) is not None:
        _subjects[task] = subject


class WithSubject(logging.Filter):
    """Add whom a line is about."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no loop in this thread
            return True
        if task is not None and (subject := _subjects.get(task)) is not None:
            for name, value in subject.facts.items():
                vars(record).setdefault(name, value)
        return True


def digest(namespace: str, user_id: str) -> str:
    """What stands for a user in logs: enough to follow somebody, without saying who it is."""
    return hashlib.sha256(f"{namespace}:{user_id}".encode()).hexdigest()[:12]
