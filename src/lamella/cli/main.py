"""The program itself: turns errors into one sentence and an exit code."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from lamella.cli.commands import COMMANDS, Commands
from lamella.cli.output import print_json, stderr
from lamella.core.errors import INTERRUPTED_EXIT_CODE, InvalidRequest, LamellaError, StorageFailed
from lamella.version import __version__

STORY = """Large language models at the precision that memory, load and power allow, changed while they run.

Serve a model, OpenAI-compatible; the first time it is measured and gets a few variants:

    lamella serve smollm2 | model.gguf | hf:OWNER/REPO [--memory 6GiB]

or go step by step:

\b
    lamella ladder smollm2 STORE              measure it, plan variants, build them into a store
    lamella run STORE                         talk to one; /switch NAME changes it while it answers
    lamella serve STORE                       serve them all

Something does not work: lamella doctor.  Each command explains itself with --help.
"""


class Program(TyperGroup):
    """``lamella``: its commands are loaded when they are asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Called for ``--help``: the commands under their headings, without loading them."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, place in COMMANDS.items():
            groups.setdefault(place.heading, []).append((name, place.summary))
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=max(map(len, COMMANDS)))


app = typer.Typer(
    name="lamella",
    cls=Program,
    help=STORY,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lamella {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (docs/cli.md lists them)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    try:
        result = app(args=arguments, standalone_mode=False)
    except TyperException as error:
        return _report_usage(error, as_json)
    except LamellaError as error:
        return _report(type(error).__name__, str(error), error.exit_code, as_json)
    except Exception as error:  # a fault of ours: one sentence for people, the traceback for whoever mends it
        if isinstance(error, BrokenPipeError) and _reader_is_gone():  # as head goes; nobody is left to be told
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it ends
            return LamellaError.exit_code
        if os.environ.get("LAMELLA_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is not None:  # of a path that somebody named
            return _report("StorageFailed", f"{error.filename}: {error.strerror}", StorageFailed.exit_code, as_json)
        message = f"{type(error).__name__}: {error} (a fault in Lamella; LAMELLA_DEBUG=1 shows where)"
        return _report("InternalError", message, LamellaError.exit_code, as_json)
    code = result if isinstance(result, int) else 0
    if code == INTERRUPTED_EXIT_CODE:  # typer's answer to Ctrl-C
        return _report("Interrupted", "interrupted; what was finished stays", code, as_json)
    return code


def _reader_is_gone() -> bool:
    """Whether nobody can read standard output any more."""
    asked = select.poll()
    asked.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in asked.poll(0))


def _report_usage(error: TyperException, as_json: bool) -> int:
    """What is wrong with the words of a command, and where it says what it takes."""
    context, message = getattr(error, "ctx", None), error.format_message()
    if context is not None and message == context.get_help():  # a command that was given nothing explains itself
        sys.stderr.write(f"{message}\n")
        return InvalidRequest.exit_code
    if context is not None:
        message += f"{'' if message.endswith(('.', '?')) else '.'} See: {context.command_path} --help"
    return _report("UsageError", message, InvalidRequest.exit_code, as_json)


def _report(kind: str, message: str, exit_code: int, as_json: bool) -> int:
    message = message.encode("utf-8", "backslashreplace").decode()  # paths need not be text
    if as_json:
        print_json({"error": {"kind": kind, "message": message, "exit_code": exit_code}})
    stderr.print(f"lamella: {message}", markup=False)
    return exit_code
