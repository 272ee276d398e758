from __future__ import annotations

import logging

import pytest

from realtime.logs import ConsoleFormatter, WithoutTraceback


def record(message: str = "connection opened", *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("realtime.test").makeRecord(
        "realtime.test", logging.INFO, __file__, 1, message, args, None, extra=extra
    )


# --- Console -----------------------------------------------------------------------------------------


def test_line_has_time_level_logger_message_and_facts():
    line = ConsoleFormatter().format(record(namespace="hub", code=4401))
    time, _, rest = line.partition(" ")
    assert len(time.split(":")) == 3
    assert rest == "INFO    realtime.test  connection opened namespace='hub' code=4401"


def test_line_without_facts_is_the_message():
    assert ConsoleFormatter().format(record("ready")).endswith("  ready")


@pytest.mark.parametrize("breaking", ["a\nERROR forged", "a\r\nb", "\x1b[2J", "\u2028"])
def test_fact_from_a_client_cannot_start_a_line_of_its_own(breaking: str):
    line = ConsoleFormatter().format(record(event=breaking))
    assert line.isprintable()


# --- Errors that are events, not bugs ----------------------------------------------------------------


def failing() -> logging.LogRecord:
    try:
        raise ConnectionError("redis is gone")
    except ConnectionError as error:
        return logging.getLogger("x").makeRecord(
            "x",
            logging.ERROR,
            __file__,
            1,
            "receive of %s failed:",
            ("shard",),
            (type(error), error, error.__traceback__),
        )


def test_traceback_is_dropped_and_the_error_kept():
    entry = failing()
    assert WithoutTraceback().filter(entry)
    line = logging.Formatter().format(entry)
    assert line == "receive of shard failed: ConnectionError('redis is gone')"


def test_record_without_an_error_passes_unchanged():
    entry = record("a %s", "b")
    assert WithoutTraceback().filter(entry)
    assert entry.getMessage() == "a b"


def test_record_with_an_empty_error_passes():
    entry = record("a")
    entry.exc_info = (None, None, None)
    assert WithoutTraceback().filter(entry)
    assert entry.getMessage() == "a"
