"""How log lines look. Modules log an event and its facts: `logger.info("connection opened", extra={...})`."""

from __future__ import annotations

import logging

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


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
            record.msg = f"{record.getMessage().rstrip(':')}: {record.exc_info[1]!r}"
            record.args = ()
            record.exc_info = record.exc_text = None
        return True
