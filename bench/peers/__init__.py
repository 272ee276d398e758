"""The peers' programs. Each authenticates with a JWT, joins rooms by right, and passes typing on."""


def uvicorn_arguments(application: str, port: int) -> tuple[str, ...]:
    """uvicorn at its best for this: uvloop, httptools, no compression, no log line per request."""
    return (
        *("-m", "uvicorn", application, "--host", "127.0.0.1", "--port", str(port)),
        *("--loop", "uvloop", "--http", "httptools", "--ws", "websockets-sansio"),
        *("--ws-per-message-deflate", "false", "--no-access-log", "--log-level", "warning"),
    )
