"""The drawing of a replay, live or simulated: what came, how long tokens took, and which variant ran.

plot_replay(trace, outcome.served, objectives, ["large", "small"], "large", outcome.changes, Path("replay.svg"))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lamella.qos.objectives.stated import Objectives
from lamella.qos.simulator.outcome import Change, Served, attainment, met
from lamella.qos.traces.arrivals import Trace
from lamella.report.figures import (
    GREY,
    INK,
    LINES,
    check_suffix,
    empty_figure,
    keep_quiet,
    plain,
    save,
    set_title,
)

WIDTH_INCHES, HEIGHT_INCHES = 10.0, 6.4
BIN_SECONDS = 2.0
_MET, _MISSED = "#7b9bbb", "#cc503e"


def plot_replay(
    trace: Trace,
    served: Sequence[Served],
    objectives: Objectives,
    rungs: Sequence[str],
    start: str,
    changes: Sequence[Change],
    path: Path,
) -> None:
    """Draw three panels over one time: arrivals, time per token of each request, variants.

    Args:
        rungs: variants, best first.
        start: the variant that ran first.

    Raises:
        InvalidRequest: the suffix is none that is drawn.
        StorageFailed: the file cannot be written.
    """
    check_suffix(path)
    figure = empty_figure(WIDTH_INCHES, HEIGHT_INCHES)
    load, latency, variants = figure.subplots(3, 1, sharex=True, height_ratios=(1, 2, 1))
    for axes in (load, latency, variants):
        keep_quiet(axes)
    _draw_load(load, trace)
    _draw_latency(latency, served, objectives)
    _draw_variants(variants, rungs, start, changes, trace.seconds)
    share = f"{attainment(served, objectives):.1%} of {len(served)} requests met what they were promised"
    set_title(load, trace.name, share)
    save(figure, path)


def _draw_load(axes: Any, trace: Trace) -> None:
    n_bins = max(1, math.ceil(trace.seconds / BIN_SECONDS))
    edges = [i * BIN_SECONDS for i in range(n_bins + 1)]
    weight = 1 / BIN_SECONDS
    times = [arrival.seconds for arrival in trace.arrivals]
    axes.hist(times, bins=edges, weights=[weight] * len(times), color=GREY)
    axes.set_ylabel("requests/s", color=INK)


def _draw_latency(axes: Any, served: Sequence[Served], objectives: Objectives) -> None:
    for is_met, colour, label in ((True, _MET, "met"), (False, _MISSED, "missed")):
        found = [s for s in served if not s.failure and met(s, objectives) == is_met]
        axes.scatter(
            [s.arrived for s in found], [1000 * s.tpot_seconds for s in found], s=7, color=colour, label=label, zorder=3
        )
    for name, wanted in objectives.classes.items():
        if wanted.tpot_seconds is not None:
            axes.axhline(1000 * wanted.tpot_seconds, color=INK, linewidth=1, linestyle="--", label=plain(name))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ms a token", color=INK)
    axes.legend(loc="upper right", frameon=False, fontsize=8, labelcolor=INK, ncols=3)


def _draw_variants(axes: Any, rungs: Sequence[str], start: str, changes: Sequence[Change], seconds: float) -> None:
    for begin, end, variant in _spans(start, changes, seconds):
        rank = rungs.index(variant)
        axes.barh(rank, end - begin, left=begin, height=0.8, color=LINES[rank % len(LINES)])
    axes.set_yticks(range(len(rungs)), [plain(name) for name in rungs])
    axes.set_ylim(len(rungs) - 0.4, -0.6)
    axes.grid(visible=False)
    axes.set_xlim(0, seconds or 1)
    axes.set_xlabel("seconds", color=INK)


def _spans(start: str, changes: Sequence[Change], seconds: float) -> Iterator[tuple[float, float, str]]:
    """Begin and end of each time in which one variant ran."""
    begin, variant = 0.0, start
    for change in changes:
        yield begin, max(begin, change.time), variant
        begin, variant = max(begin, change.time), change.after
    yield begin, max(begin, seconds), variant
