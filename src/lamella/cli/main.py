"""Joins the commands and turns errors into one sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from lamella.cli import (
    build,
    chat,
    cluster,
    devices,
    eval,
    exchange,
    frontier,
    imatrix,
    inspect,
    keeping,
    ladder,
    lm_eval,
    measure,
    node,
    plan,
    profile,
    remote,
    run,
    serve,
    simulate,
    store,
)
from lamella.cli.output import print_json, stderr
from lamella.cli.panels import GroupedCommand
from lamella.core.errors import INTERRUPTED_EXIT_CODE, InvalidRequest, LamellaError
from lamella.version import __version__

app = typer.Typer(
    name="lamella",
    help="Large language models at the precision that memory, load and power allow, changed while they run.\n\n"
    "A first round, with the embedded model:  lamella build smollm2 STORE --alpha 0.5,0.9  then  lamella run STORE",
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


app.command("inspect")(inspect.inspect)
app.command("devices")(devices.devices)
app.command("measure")(measure.measure)
app.command("imatrix")(imatrix.imatrix)
app.command("plan")(plan.plan)
app.command("frontier")(frontier.frontier)
app.command("ladder")(ladder.ladder)
app.command("build")(build.build)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("serve", cls=GroupedCommand)(serve.serve)
app.command("profile")(profile.profile)
app.command("simulate")(simulate.simulate)
app.command("eval")(eval.evaluate)
app.command("export")(exchange.export_variant)
app.command("import")(exchange.import_file)
app.command("lm-eval", context_settings=lm_eval.OPTIONS)(lm_eval.lm_eval)
app.command("pull")(remote.pull)
app.command("push")(remote.push)
app.command("serve-store")(remote.serve_store)
keeping.add_to(store.app)
app.command("node")(node.node)
app.add_typer(cluster.app, name="cluster")
app.add_typer(store.app, name="store")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (docs/cli.md lists them)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    try:
        result = app(args=arguments, standalone_mode=False)
    except TyperException as error:
        return _report("UsageError", error.format_message(), InvalidRequest.exit_code, as_json)
    except LamellaError as error:
        return _report(type(error).__name__, str(error), error.exit_code, as_json)
    except Exception as error:  # a fault of ours: one sentence for people, the traceback for whoever mends it
        if os.environ.get("LAMELLA_DEBUG"):
            raise
        message = f"{type(error).__name__}: {error} (a fault in Lamella; LAMELLA_DEBUG=1 shows where)"
        return _report("InternalError", message, LamellaError.exit_code, as_json)
    code = result if isinstance(result, int) else 0
    if code == INTERRUPTED_EXIT_CODE:  # typer's answer to Ctrl-C
        return _report("Interrupted", "interrupted; what was finished stays", code, as_json)
    return code


def _report(kind: str, message: str, exit_code: int, as_json: bool) -> int:
    if as_json:
        print_json({"error": {"kind": kind, "message": message, "exit_code": exit_code}})
    stderr.print(f"lamella: {message}", markup=False)
    return exit_code
