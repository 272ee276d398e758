"""The peers' programs. Each authenticates clients by a JWT, lets them join permitted rooms, and relays typing."""


def uvicorn_arguments(application: str, port: int) -> tuple[str, ...]:
    """The fastest options of uvicorn here: uvloop, httptools, no compression, no log line per request."""
    return (
        *("-m", "uvicorn", application, "--host", "127.0.0.1", "--port", str(port)),
        *("--loop", "uvloop", "--http", "httptools", "--ws", "websockets-sansio"),
        *("--ws-per-message-deflate", "false", "--no-access-log", "--log-level", "warning"),
    )
