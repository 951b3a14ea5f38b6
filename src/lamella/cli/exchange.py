"""``lamella export`` and ``lamella import``: variants of a store and single GGUF files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lamella import api
from lamella.cli.keeping import note_trim
from lamella.cli.options import NewStoreArgument, split_target
from lamella.cli.output import JsonFlag, note, print_json, progress, say
from lamella.config import Config
from lamella.core.units import format_bytes, format_seconds


def export_variant(
    target: Annotated[str, typer.Argument(metavar="STORE[@VARIANT]", help="Store and variant; default: the only one.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The GGUF file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    json: JsonFlag = False,
) -> None:
    """Write a variant as one GGUF file, which llama.cpp, Ollama and LM Studio open."""
    folder, variant = split_target(target)
    n_threads = Config.from_environment(os.environ).n_threads or None
    with progress(f"exporting to {file.name}", quiet=json) as update:
        report = api.export(folder, file, variant, force=force, n_threads=n_threads, on_progress=update)
    if json:
        print_json(
            {
                "store": str(folder),
                "variant": report.variant.name,
                "file": str(report.path),
                "bytes": report.n_bytes,
                "file_type": report.file_type,
                "bits_per_weight": report.variant.plan.bits_per_weight,
                "seconds": report.seconds,
            }
        )
        return
    say(
        f"{report.variant.name}: {report.path}, {format_bytes(report.n_bytes)} in {format_seconds(report.seconds)}; "
        f"stock llama.cpp: llama-server -m {report.path}"
    )


def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file; of a split one, any part.")],
    store: NewStoreArgument,
    name: Annotated[
        str | None, typer.Option(help="Name of the variant. Default: the exported variant's, or the file's.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Make a GGUF file of the same model a variant, its tensors as they are; equal layers are shared.

    May be interrupted: what is finished stays, and the same command goes on from there.
    """
    config = Config.from_environment(os.environ)
    with progress(f"importing {file.name}", quiet=json) as update:
        report = api.import_file(file, store, name, n_threads=config.n_threads or None, on_progress=update)
    variant = report.variant
    note_trim(report.trimmed)
    if json:
        print_json(
            {
                "store": str(store),
                "variant": variant.name,
                "policy": variant.plan.policy,
                "from_export": report.from_export,
                "bytes": variant.n_bytes,
                "bits_per_weight": variant.plan.bits_per_weight,
                "shards": len(variant.shards),
                "shared": report.n_shared,
                "new_bytes": report.new_bytes,
                "metadata_left_out": list(report.metadata_left_out),
                "seconds": report.seconds,
            }
        )
        return
    origin = "with the plan it was exported with" if report.from_export else "types as in the file"
    say(
        f"{variant.name}: {format_bytes(variant.n_bytes)}, {variant.plan.bits_per_weight:.2f} bits per weight, {origin}"
    )
    say(
        f"{report.n_shared} of {len(variant.shards)} shards were in {store} already; "
        f"{format_bytes(report.new_bytes)} added in {format_seconds(report.seconds)}"
    )
    if report.metadata_left_out:
        note(f"the store's own metadata is kept; the file's differs in {', '.join(report.metadata_left_out)}")
