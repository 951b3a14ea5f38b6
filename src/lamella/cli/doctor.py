"""``lamella doctor``: whether models can run here, and what to do where they cannot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lamella import api
from lamella.cli.output import JsonFlag, print_json, say, stdout, table
from lamella.config import Config
from lamella.doctor import Diagnosis, Status
from lamella.resources.catalogue import DEFAULT_MODEL

SIGNS = {Status.OK: "ok", Status.WARNING: "warning", Status.PROBLEM: "PROBLEM"}


def doctor(
    stores: Annotated[
        list[Path] | None, typer.Argument(metavar="[STORE]...", help="Stores to look into, beside those in the cache.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model whose smallest plan must fit: a file, or 'smollm2'.")
    ] = DEFAULT_MODEL,
    json: JsonFlag = False,
) -> int:
    """Say whether models can run here, and how to mend what is in the way.

    Looked at are compiler, llama.cpp, processor, devices, RPC, memory and its limits, disk and stores.  The exit code
    is 0 where models can run, warnings or not; else that of the first problem (docs/cli.md).
    """
    config = Config.from_environment(os.environ)
    found = api.doctor(config.cache_folder, model, stores or ())
    if json:
        print_json({"ok": not found.problems, "exit_code": found.exit_code, "findings": list(found.findings)})
    else:
        _show(found)
    return found.exit_code


def _show(diagnosis: Diagnosis) -> None:
    shown = table("", "check", "found")
    for finding in diagnosis.findings:
        shown.add_row(SIGNS[finding.status], finding.check, finding.found)
    stdout.print(shown)
    for finding in (*diagnosis.problems, *diagnosis.warnings):
        say(f"\n{finding.check}: {finding.cure}")
    n_problems, n_warnings = len(diagnosis.problems), len(diagnosis.warnings)
    say(
        f"\n{_counted(n_problems, 'problem')}, {_counted(n_warnings, 'warning')}"
        if n_problems or n_warnings
        else "\nmodels can run here"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
