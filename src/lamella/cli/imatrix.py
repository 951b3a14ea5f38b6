"""``lamella imatrix``: what rounding should be careful with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lamella import api
from lamella.cli.options import ModelArgument, output_option
from lamella.cli.output import JsonFlag, print_json, progress, say
from lamella.config import Config
from lamella.measuring import ImportanceSettings


def imatrix(
    model: ModelArgument,
    calibration: Annotated[
        list[str], typer.Option(metavar="[TASK=]FILE", help="Text to gather on; may be given several times.")
    ],
    out: Annotated[Path, output_option(help="Write the matrix to this file (GGUF, as llama-imatrix writes it).")],
    windows: Annotated[
        int | None, typer.Option(help="Windows of each text, from its start. Default: the whole text.")
    ] = None,
    window_tokens: Annotated[int, typer.Option(help="Tokens in a window.")] = ImportanceSettings().window_tokens,
    head: Annotated[
        bool,
        typer.Option("--head/--no-head", help="Also of the matrix behind the logits."),
    ] = True,
    json: JsonFlag = False,
) -> None:
    """Gather an importance matrix: the mean squared activation of each weight column, for lamella build --imatrix."""
    settings = ImportanceSettings(
        window_tokens=window_tokens,
        windows=windows,
        head=head,
        n_threads=Config.from_environment(os.environ).n_threads,
    )
    with progress("gathering importance", quiet=json) as update:
        found = api.gather_importance(model, calibration, settings=settings, on_progress=update)
    api.write_importance(found, out)
    described = {"tensors": len(found.sums), "windows": found.chunk_count, "window_tokens": found.chunk_tokens}
    if json:
        print_json({"out": str(out), "texts": list(found.datasets), **described})
    else:
        say(f"{out}: {len(found.sums)} tensors, {found.chunk_count} windows of {found.chunk_tokens} tokens")
