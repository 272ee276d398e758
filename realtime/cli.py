"""The console script `realtime`, `python -m realtime` and `manage.py`: Django's commands, with short names for ours.

What a user can get wrong (a name, a setting, a package that is not installed) is one sentence and exit status 2.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from django.conf import settings
from django.core import management
from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line, find_commands, get_commands, load_command_class

from realtime import extras
from realtime.conf import load
from realtime.extras import DISTRIBUTION

SOCKETS, WEB = "realtime.settings.sockets", "realtime.settings.web"
ENVIRONMENT = "DJANGO_SETTINGS_MODULE"
HELP = frozenset({"-h", "--help"})


class Command(NamedTuple):
    """A command of Django's that has a short name here. What it needs installed, it says itself (`management.base`)."""

    name: str
    """Django's name."""
    help: str = ""
    settings: str = WEB
    """Its settings, unless the user names others."""
    app: str = "realtime"
    """The package that brings it; empty: the settings say which."""
    is_of_socket_side: bool = False
    """It needs no database, and runs with any project's settings."""


def _of_socket_side(name: str, help: str = "") -> Command:  # noqa: A002
    return Command(name, help, SOCKETS, is_of_socket_side=True)


COMMANDS = {
    "sockets": _of_socket_side("runsockets", "serve the WebSocket namespaces"),
    "bridge": _of_socket_side("runbridge", "deliver what backbones publish, and sweep presence"),
    "recorder": Command("runrecorder", "write presence changes to the database", app="presence"),
    "web": Command("runweb", "serve the admin and the token endpoint"),
    "outbox": Command("runoutbox", "send what the outbox holds", app="realtime.outbox"),
    "check": Command(
        "check", "report settings that are wrong; with --deploy, unsafe ones", app="django.core"
    ),
    "token": _of_socket_side("issuetoken", "print an access token, for experiments"),
    "publish": Command("publish", "publish one event", SOCKETS),
}
_OTHERS = (
    Command("pruneoutbox", app="realtime.outbox"),
    *map(_of_socket_side, ("documentevents", "generateclient", "generateasyncapi")),
)
_BY_NAME = {command.name: command for command in (*COMMANDS.values(), *_OTHERS)}


def command_of(name: str) -> Command:
    """The command with this name, ours or Django's. One that is not ours runs with the settings of the web side."""
    return COMMANDS.get(name) or _BY_NAME.get(name) or Command(name, app="")


class Unusable(Exception):
    """The command cannot run; the message is a sentence for the user."""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Unusable(message)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command, by default that of the command line, and exit with its status."""
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        sys.exit(status)
    except ImproperlyConfigured as error:
        _fail(f"Configuration error: {error}")
    except Unusable as error:
        _fail(f"{_program()}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `realtime docs PAGE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _fail(sentence: str) -> NoReturn:
    print(" ".join(sentence.split()), file=sys.stderr)
    sys.exit(2)


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "python -m realtime" if name == "__main__.py" else name


def _run(arguments: list[str]) -> int:
    options, rest = _parse(arguments)
    if not rest:
        print(_usage(), file=sys.stderr)
        return 2
    if rest[0] in HELP or rest == ["help"] or (rest[0] == "docs" and not HELP.isdisjoint(rest)):
        print(_usage())
    elif rest == ["--version"]:
        print(_version())
    elif rest[0] == "docs":
        print(_documentation(*rest[1:]))
    else:
        _run_command(rest, options.settings, options.pythonpath)
    return 0


def _parse(arguments: list[str]) -> tuple[Any, list[str]]:
    """The options that every command has, wherever they are, and what remains."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--settings")
    parser.add_argument("--pythonpath")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, rest = parser.parse_known_args(arguments[:end])
    return options, rest + arguments[end:]


def _usage() -> str:
    lines = [
        f"usage: {_program()} COMMAND [OPTIONS] [--settings MODULE]",
        "",
        *(f"  {name:<10} {command.help}" for name, command in COMMANDS.items()),
        "  docs       print where the documentation and the files of deploy/ are; docs PAGE prints a page",
        "",
        "COMMAND --help lists the options of a command. --settings names the settings of your project; else",
        "DJANGO_SETTINGS_MODULE does. The commands of Django and of your apps run, too: migrate, collectstatic, ...",
    ]
    return "\n".join(lines)


def _version() -> str:
    try:
        return f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    except metadata.PackageNotFoundError:
        return f"{DISTRIBUTION} (not installed)"


# --- Documentation -----------------------------------------------------------------------------------


def _documentation(page: str = "", *others: str) -> str:
    """The text of a page, or of none, where the pages are."""
    folder = _documentation_folder()
    pages = {path.stem: path for path in (*folder.glob("*.md"), *folder.glob("docs/*.md"))}
    pages["client"] = folder / "client" / "README.md"
    if not page:
        return "\n".join([str(folder), *(f"  {path.relative_to(folder)}" for path in sorted(pages.values()))])
    if page not in pages or others:
        raise Unusable(
            f"there is no page {' '.join([page, *others])}; the pages are {', '.join(sorted(pages))}"
        )
    return pages[page].read_text().rstrip()


def _documentation_folder() -> Path:
    """Where the wheel has put README.md, docs/ and deploy/, or the checkout. Raises `Unusable`."""
    if extras.project():
        return extras.ROOT
    try:
        files = metadata.files(DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.match(f"share/doc/{DISTRIBUTION}/README.md"):
            return Path(file.locate()).resolve().parent
    raise Unusable("the documentation is not installed; the source distribution contains it")


# --- One command -------------------------------------------------------------------------------------


def _run_command(arguments: list[str], module: str | None, path: str | None) -> None:
    name, *rest = arguments
    if name.startswith("-"):
        raise Unusable(f"expected a command first, got {name}; {_program()} --help lists the commands")
    command = command_of(name)
    _find_modules(path)
    if command.app and not HELP.isdisjoint(rest[: rest.index("--")] if "--" in rest else rest):
        _print_help(name, command)
        return
    hint = "" if module or ENVIRONMENT in os.environ else _hint(command)
    if module:
        os.environ[ENVIRONMENT] = module
    try:
        _run_with_settings(os.environ.setdefault(ENVIRONMENT, command.settings), command, name, rest)
    except (ImproperlyConfigured, Unusable) as error:
        if not hint:
            raise
        kind = Unusable if isinstance(error, Unusable) else ImproperlyConfigured
        raise kind(f"{error}. {hint}") from error
    except SystemExit as end:  # Django has said what is wrong
        if end.code and hint:
            print(hint, file=sys.stderr)
        raise


def _print_help(name: str, command: Command) -> None:
    """Print the options of a command that we know. They are the same with any settings, so none are loaded."""
    import django  # noqa: PLC0415

    apps = {"django.contrib.contenttypes", "django.contrib.auth", "realtime", command.app} - {"django.core"}
    settings.configure(INSTALLED_APPS=sorted(apps))
    django.setup()
    loaded = _importing(lambda: load_command_class(command.app, command.name), f"cannot run {name}")
    loaded.print_help(_program(), name)


def _hint(command: Command) -> str:
    """What to say after an error in the folder of a project, where a user may mean its settings; else empty."""
    manage = Path("manage.py")
    if not manage.is_file() or Path.cwd() == extras.ROOT:
        return ""
    found = re.search(rf"""{ENVIRONMENT}["'], *["']([\w.]+)["']""", manage.read_text(errors="replace"))
    theirs = found[1] if found else "MODULE"
    return f"The settings were {command.settings}; for those of your project add --settings {theirs}"


def _run_with_settings(module: str, command: Command, name: str, rest: Sequence[str]) -> None:
    try:
        _importing(lambda: _load_settings(module), f"cannot load the settings {module}")
    except (ImproperlyConfigured, Unusable) as error:
        if command.app or name in find_commands(str(Path(management.__file__).parent)):
            raise
        raise Unusable(f"{name} is no command of ours, and those of apps are not known: {error}") from error
    _importing(lambda: _set_up(command), f"cannot start with the settings {module}")
    _execute(name, command, rest)


def _find_modules(path: str | None) -> None:
    """Find the modules of the current folder, as `manage.py` and `python -m` do."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(1, here)  # behind the folder of the script: for manage.py that of its project
    if path:
        sys.path.insert(0, path)


def _load_settings(module: str) -> None:
    import_module(module)
    _ = settings.INSTALLED_APPS


def _set_up(command: Command) -> None:
    if command.is_of_socket_side:
        from realtime.server.setup import set_up  # noqa: PLC0415  (a part of the extra)

        set_up()
    else:
        import django  # noqa: PLC0415

        django.setup()


def _execute(name: str, command: Command, arguments: Sequence[str]) -> None:
    app = get_commands().get(command.name)
    if app is None and command.app:
        raise Unusable(f"{name} needs {command.app!r} in INSTALLED_APPS of {settings.SETTINGS_MODULE}")
    if app is None:
        raise Unusable(f"there is no command {name}; {_program()} --help lists the commands")
    if name not in COMMANDS:
        _execute_of_django(name, arguments)
        return
    loaded: Any = app
    if isinstance(app, str):
        loaded = _importing(lambda: load_command_class(app, command.name), f"cannot run {name}")
    loaded.run_from_argv([_program(), name, *arguments])


def _execute_of_django(name: str, arguments: Sequence[str]) -> None:
    """A command of Django's or of an app, with what Django does around it, such as the reloader of `runserver`.

    Its failures that the surroundings cause (a database that cannot be reached, a folder that is read-only) are one
    sentence, too, unless `--traceback` asks for more.
    """
    try:
        execute_from_command_line([_program(), name, *arguments])
    except Exception as error:
        if "--traceback" in arguments or isinstance(error, BrokenPipeError) or not _has_outer_cause(error):
            raise
        raise Unusable(f"{name} failed: {error} (--traceback shows where)") from error


def _has_outer_cause(error: Exception) -> bool:
    database = sys.modules.get("django.db.utils")  # the socket side does without
    return isinstance(error, OSError) or (database is not None and isinstance(error, database.DatabaseError))


def _importing(action: Callable[[], Any], failure: str) -> Any:
    """Do what imports modules. Raises `Unusable` when one of them cannot be imported."""
    try:
        return load(lambda _: action(), "")
    except ImportError as error:
        raise Unusable(f"{failure}: {error}") from error
