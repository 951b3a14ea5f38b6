"""What commands do with an artifact they made: to a file, to a plot, to the reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lamella import api
from lamella.cli.output import note, print_json
from lamella.core.artifacts import Measurement, Plan, to_plain

A = TypeVar("A", Measurement, Plan)


def deliver(
    artifact: A,
    *,
    out: Path | None,
    plot: Path | None,
    draw: Callable[[A, Path], None],
    show: Callable[[A], None],
    json: bool,
) -> None:
    """Write it to ``out``, draw it to ``plot``, and print it: as JSON, or with ``show`` for people."""
    if out:
        api.write_artifact(artifact, out)
        note(f"wrote {out}")
    if plot:
        draw(artifact, plot)
        note(f"drew {plot}")
    if json:
        print_json(to_plain(artifact))
    else:
        show(artifact)
