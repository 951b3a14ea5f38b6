"""Figures of docs/dilemma.md, drawn from benchmarks/results/dilemma-MODEL.json.

    python -m benchmarks.dilemma_plots [--model smollm2]

Bits and loss against delta; the time of a request against the speed of links and of the edge servers' processors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import RESULTS, ROOT
from benchmarks.dilemma_cluster import RULES

IMAGES = ROOT / "docs" / "images"
INK, GREY, GRID = "#1f2933", "#616e7c", "#e4e7eb"
COLOURS = {"truncate": "#c2255c", "block": "#0b7285"}
LINES = ("#d9480f", "#5f3dc4", "#2b8a3e", "#9c6f00", "#1864ab")
NAMES = {"truncate": "truncated codes (the paper's)", "block": "ggml's blocks"}
WHAT = {"links": "speed of all links", "processors": "speed of the edge servers"}


def main() -> None:
    """Draw both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    model = parser.parse_args().model
    found = json.loads((RESULTS / f"dilemma-{model}.json").read_text())
    draw_deltas(found["rows"], model)
    for name, measured in found.get("sensitivity", {}).items():  # a record may be of plans and losses alone
        draw_sensitivity(measured, name)


def draw_deltas(rows: Sequence[Mapping[str, Any]], model: str) -> None:
    """The quantization ratio, and what it costs, by delta."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    bits, loss = figure.subplots(1, 2)
    for scheme, colour in COLOURS.items():
        mine = [row for row in rows if row["scheme"] == scheme]
        deltas = [row["delta"] for row in mine]
        bits.plot(deltas, [100 * row["ratio"] for row in mine], "o-", color=colour, label=NAMES[scheme], markersize=4)
        scored = [row for row in mine if "loss" in row]
        loss.plot([row["delta"] for row in scored], [row["loss"] for row in scored], "o-", color=colour, markersize=4)
    bits.axhline(12.5, color=GREY, linewidth=1, linestyle=":")
    bits.set_ylabel("bits of the layers, % of 32", color=INK)
    loss.set_ylabel("SQuAD loss, nats a token", color=INK)
    for axes in (bits, loss):
        axes.set_xscale("log")
        axes.set_xlabel("δ, mean weight difference allowed", color=INK)
        _finish(axes)
    bits.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{model}: what the joint plan chooses", x=0.01, ha="left", color=INK, fontsize=10)
    figure.savefig(IMAGES / f"dilemma-deltas-{model}.svg")


def draw_sensitivity(measured: Mapping[str, Sequence[Mapping[str, Any]]], model: str) -> None:
    """A request's time by the joint plan and by rules."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    for axes, (what, rows) in zip(figure.subplots(1, 2, sharey=True), measured.items(), strict=True):
        factors = [row["factor"] for row in rows]
        for rule, colour in zip(RULES, LINES, strict=True):
            values = [row[rule] for row in rows]
            axes.plot(factors, values, "-", color=colour, linewidth=1.2, label=rule)
        axes.plot(factors, [row["joint"] for row in rows], "o-", color=INK, linewidth=2, markersize=4, label="joint")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(f"{WHAT[what]}, times", color=INK)
        _finish(axes)
    figure.axes[0].set_ylabel("seconds a request", color=INK)
    figure.axes[1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{model}: time of 128 + 64 tokens", x=0.01, ha="left", color=INK, fontsize=10)
    figure.savefig(IMAGES / f"dilemma-sensitivity-{model}.svg")


def _finish(axes: Any) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY)


if __name__ == "__main__":
    main()
