"""Objectives from a file or from flags, for the commands that take both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamella.cli.options import check_input
from lamella.core.errors import InvalidRequest
from lamella.qos.objectives.files import read_objectives, stated_objectives
from lamella.qos.objectives.stated import Objectives
from lamella.qos.traces.arrivals import DEFAULT_CLASS


def objectives_of_options(
    file: Path | None, classes: Sequence[str], *, memory: str | None = None, power: float | None = None
) -> Objectives:
    """The file's, or the flags'.

    Raises:
        InvalidRequest: both, a file that is none, or what has no meaning in either.
    """
    if file is None:
        return stated_objectives(classes, memory=memory, power=power)
    if classes or memory or power is not None:
        raise InvalidRequest("--objectives says everything; leave out the options for single objectives")
    check_input(file)
    return read_objectives(file)


def usual_class(ttft_p95: float | None, token_p95: float | None, quality_floor: float | None) -> list[str]:
    """What the flags without a class say, as a flag of the usual class; empty if they say nothing."""
    said = {"ttft_p95_ms": ttft_p95, "tpot_p95_ms": token_p95, "max_kl": quality_floor}
    fields = ",".join(f"{name}={value}" for name, value in said.items() if value is not None)
    return [f"{DEFAULT_CLASS}:{fields}"] if fields else []
