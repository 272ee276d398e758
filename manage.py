#!/usr/bin/env python
"""Django's command line. A command runs with its side's settings unless DJANGO_SETTINGS_MODULE says otherwise."""

import os
import sys

SOCKET_SIDE = {
    "runsockets",
    "runbridge",
    "issuetoken",
    "publish",
    "documentevents",
    "generateclient",
    "generateasyncapi",
}


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    side = "sockets" if command in SOCKET_SIDE else "web"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", f"realtime.settings.{side}")
    from django.core.exceptions import ImproperlyConfigured  # noqa: PLC0415
    from django.core.management import execute_from_command_line  # noqa: PLC0415

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        print(f"Configuration error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
