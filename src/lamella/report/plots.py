"""Plots of a measurement, a plan, a frontier and a ladder, to PNG, SVG or PDF by the file's suffix.

    plot_measurement(measured["jaccard"], Path("jaccard.png"))
    plot_plan(plan, Path("plan.svg"))
    plot_frontier(found, Path("frontier.png"), [PlanPoint("Q4_K_M", 5.53, 0.083)])

Figures are drawn without pyplot, so no global state and no display is involved.  A file appears whole or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.core.artifacts import LayerScore, Measurement, Plan
from lamella.core.precision import GGML_TYPES, nominal_bits
from lamella.core.units import format_bytes
from lamella.planning.cost import MIXED
from lamella.planning.frontier import Frontier
from lamella.planning.ladder import Ladder
from lamella.report.figures import (
    GREY,
    INK,
    LINES,
    add_legend,
    check_suffix,
    finish_layers,
    graded,
    over_layers,
    plain,
    save,
    set_title,
)

_AXES = {
    "jaccard": "importance  1 − J",
    "cosine": "importance  1 − cos(in, out)",
    "outlier": "share of weights with z > 1",
    "weight-difference": "‖W − Q(W)‖ / ‖W‖",
}
_EMBEDDING_AND_HEAD = ("token_embd.weight", "output.weight")
_BAR, _PALE_BAR = "#7b9bbb", "#cbd5df"
# from many bits, dark, to few, light, so that the order survives printing without colour
_BY_BITS = (
    (16, "#0b3954"),
    (8, "#1d6996"),
    (6, "#38a6a5"),
    (5, "#73af48"),
    (4, "#edad08"),
    (3, "#e17c05"),
    (0, "#cc503e"),
)


def plot_measurement(measurement: Measurement, path: Path) -> None:
    """Draw the score of each layer, its standard error, and each task or precision where there are several.

    Raises:
        InvalidRequest: the suffix is none of ``SUFFIXES``.
        StorageFailed: the file cannot be written.
    """
    check_suffix(path)
    figure, axes = over_layers(len(measurement.layers))
    if measurement.per_precision:
        _draw_precisions(axes, measurement)
    else:
        _draw_tasks(axes, measurement)
    axes.set_ylabel(_AXES.get(measurement.metric, measurement.metric), color=INK)
    set_title(axes, f"{measurement.model.name} · {measurement.metric}", _measurement_facts(measurement))
    finish_layers(axes, [score.layer for score in measurement.layers])
    save(figure, path)


def plot_plan(plan: Plan, path: Path) -> None:
    """Draw the precision of each layer, or of each tensor where layers are mixed.

    Raises:
        InvalidRequest: the suffix is none of ``SUFFIXES``.
        StorageFailed: the file cannot be written.
    """
    check_suffix(path)
    figure, axes = over_layers(len(plan.layers))
    if any(layer.precision == MIXED for layer in plan.layers):
        _draw_tensors(axes, plan)
    else:
        _draw_precisions_of_layers(axes, plan)
    set_title(axes, f"{plan.model.name} · {plan.policy}, {plan.scheme} scheme", _plan_facts(plan))
    finish_layers(axes, [layer.layer for layer in plan.layers])
    add_legend(axes)
    save(figure, path)


@dataclass(frozen=True, slots=True)
class PlanPoint:
    """A plan to set beside a frontier, with the loss that the same measurement predicts for it."""

    label: str
    bits_per_weight: float
    predicted_loss: float


def plot_frontier(found: Frontier, path: Path, plans: Sequence[PlanPoint] = ()) -> None:
    """Draw the predicted loss over the size, and other plans beside it; losses of zero are below the axis.

    Raises:
        InvalidRequest: the suffix is none of ``SUFFIXES``.
        StorageFailed: the file cannot be written.
    """
    check_suffix(path)
    figure, axes = over_layers(len(found.points))
    hull = [(bits, loss) for bits, loss in found.hull if loss > 0]
    points = [p for p in found.points if p.predicted_loss > 0]
    axes.plot([b for b, _ in hull], [x for _, x in hull], color=_PALE_BAR, linewidth=1.2, label="hull of all plans")
    axes.plot(
        [p.bits_per_weight for p in points],
        [p.predicted_loss for p in points],
        color=LINES[0],
        linestyle="none",
        marker="o",
        markersize=4,
        label="frontier",
        zorder=3,
    )
    for plan in plans:
        if plan.predicted_loss > 0:
            axes.plot([plan.bits_per_weight], [plan.predicted_loss], color=LINES[1], marker="D", markersize=5, zorder=4)
            axes.annotate(
                plain(plan.label),
                (plan.bits_per_weight, plan.predicted_loss),
                xytext=(6, 4),
                textcoords="offset points",
                fontsize=8.5,
                color=INK,
            )
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight, stored", color=INK)
    axes.set_ylabel("predicted KL divergence, nats a token", color=INK)
    sizes = (
        f"{format_bytes(found.points[0].weights_bytes)} to {format_bytes(found.points[-1].weights_bytes)} of weights"
    )
    set_title(axes, f"{found.model.name} · size and loss", sizes)
    add_legend(axes)
    save(figure, path)


def plot_ladder(found: Ladder, names: Sequence[str], path: Path) -> None:
    """Draw the bits of every layer in every step; equal shards of neighbouring steps are joined.

    Args:
        names: of the steps.

    Raises:
        InvalidRequest: the suffix is none of ``SUFFIXES``.
        StorageFailed: the file cannot be written.
    """
    check_suffix(path)
    plans = [step.plan for step in found.steps]
    figure, axes = over_layers(len(plans[0].layers))
    cells = list(ladder_cells(found))
    for i, (least, colour) in enumerate(_BY_BITS):
        shown = [cell for cell in cells if _bits_colour(cell.bits) == colour]
        label = f"{least} bits and more" if i == 0 else f"{least} to {_BY_BITS[i - 1][0]} bits"
        if shown:
            axes.bar(
                [c.layer for c in shown], [c.height for c in shown], width=0.9, bottom=[c.top for c in shown],
                color=colour, label=label,
            )  # fmt: skip
    steps = [f"{plain(name)}  KL {p.predicted_loss or 0:.3g}" for name, p in zip(names, plans, strict=True)]
    axes.set_yticks(range(len(plans)), steps)
    axes.set_ylim(len(plans) - 0.4, -0.6)
    axes.grid(visible=False)
    set_title(axes, f"{plans[0].model.name} · ladder of {len(plans)} variants", _ladder_facts(found))
    finish_layers(axes, [layer.layer for layer in plans[0].layers])
    add_legend(axes)
    save(figure, path)


@dataclass(frozen=True, slots=True)
class LadderCell:
    """A layer's shard, drawn over the steps that use it."""

    layer: int
    top: float
    height: float
    bits: float


def ladder_cells(found: Ladder) -> Iterator[LadderCell]:
    """The shards of all layers, those of neighbouring steps joined."""
    plans = [step.plan for step in found.steps]
    for layer, _ in enumerate(plans[0].layers):
        types = [tuple(kind for name, kind in p.tensors.items() if name.startswith(f"blk.{layer}.")) for p in plans]
        starts = [i for i in range(len(plans)) if i == 0 or types[i] != types[i - 1]]
        for first, end in zip(starts, [*starts[1:], len(plans)], strict=True):
            bits = plans[first].layers[layer].bits_per_weight or 0.0
            yield LadderCell(layer, first - 0.46, end - first - 0.08, bits)


def _ladder_facts(found: Ladder) -> str:
    return " · ".join(
        (
            f"{format_bytes(found.joint_bytes)} together",
            f"{found.joint_bytes / found.sum_bytes:.0%} of separate files",
            f"no step loses more than {found.worst_ratio:.2f} times what it would alone",
        )
    )


def _draw_tensors(axes: Any, plan: Plan) -> None:
    """A row for each kind of weight, a column for each layer, a colour for each type; embedding and head in words."""
    places: dict[str, list[tuple[int, str]]] = {}
    for name, kind in plan.tensors.items():
        block, _, part = name.partition(".")[2].partition(".")
        if (
            name.startswith("blk.")
            and block.isdigit()
            and part.endswith(".weight")
            and not part.endswith("norm.weight")
        ):
            places.setdefault(part.removesuffix(".weight"), []).append((int(block), kind))
    used = sorted({kind for cells in places.values() for _, kind in cells}, key=_bits_of)
    colours = {kind: graded(i, len(used)) for i, kind in enumerate(used)}
    for kind in reversed(used):
        cells = [(x, y) for y, row in enumerate(places.values()) for x, k in row if k == kind]
        axes.bar(
            [x for x, _ in cells], 0.9, width=0.9, bottom=[y - 0.45 for _, y in cells],
            color=colours[kind], label=f"{kind}: {len(cells)}",
        )  # fmt: skip
    axes.set_yticks(range(len(places)), list(places))
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.grid(visible=False)


def _bits_of(type_name: str) -> float:
    return GGML_TYPES[type_name].bits_per_weight


def _draw_precisions_of_layers(axes: Any, plan: Plan) -> None:
    from matplotlib.ticker import FormatStrFormatter

    bits = {layer.precision: nominal_bits(layer.precision) for layer in plan.layers}
    counts = Counter(layer.precision for layer in plan.layers)
    for precision in sorted(bits, key=lambda p: -bits[p]):
        members = [layer for layer in plan.layers if layer.precision == precision]
        label = f"{precision}: {counts[precision]} layers, {format_bytes(sum(m.bytes for m in members))}"
        heights = [bits[precision]] * len(members)
        axes.bar([m.layer for m in members], heights, width=0.86, color=_bits_colour(bits[precision]), label=label)
    axes.set_ylabel("bits per weight, nominal", color=INK)
    axes.set_ylim(0, max(bits.values(), default=8) * 1.08)
    axes.set_yticks(sorted({0.0, *bits.values()}))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def _draw_tasks(axes: Any, measurement: Measurement) -> None:
    several = len(measurement.per_task) > 1
    errors = [score.standard_error for score in measurement.layers]
    axes.bar(
        [score.layer for score in measurement.layers],
        [score.mean for score in measurement.layers],
        width=0.8,
        color=_PALE_BAR if several else _BAR,
        label="mean over tasks ± s.e.",
        yerr=errors if any(errors) else None,
        error_kw={"ecolor": GREY, "elinewidth": 1.1, "capsize": 2},
    )
    if several:
        for i, (task, scores) in enumerate(measurement.per_task.items()):
            _draw_line(axes, scores, task, LINES[i % len(LINES)])
        add_legend(axes)
    axes.set_ylim(bottom=0)


def _draw_precisions(axes: Any, measurement: Measurement) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    for precision, scores in measurement.per_precision.items():
        _draw_line(axes, scores, precision, _bits_colour(nominal_bits(precision)))
    positive = [s.mean for scores in measurement.per_precision.values() for s in scores if s.mean > 0]
    if positive and max(positive) > 8 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    add_legend(axes)


def _draw_line(axes: Any, scores: Sequence[LayerScore], label: str, colour: str) -> None:
    layers, means = [s.layer for s in scores], [s.mean for s in scores]
    axes.plot(layers, means, color=colour, linewidth=1.6, marker="o", markersize=3, label=plain(label), zorder=3)
    if any(s.standard_error for s in scores):
        low = [s.mean - s.standard_error for s in scores]
        high = [s.mean + s.standard_error for s in scores]
        axes.fill_between(layers, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)


def _measurement_facts(measurement: Measurement) -> str:
    shown = {k: v for k, v in measurement.settings.items() if not (k == "precision" and measurement.per_precision)}
    facts = [f"{name.replace('_', ' ')} {value}" for name, value in shown.items()]
    tasks = [text.task for text in measurement.texts]
    if tasks:
        facts.insert(0, "text written by the model" if tasks == ["self"] else f"texts: {', '.join(tasks)}")
    if any(score.standard_error for score in measurement.layers):
        facts.append("± standard error")
    return " · ".join(facts)


def _plan_facts(plan: Plan) -> str:
    facts = [
        f"{plan.average_bits:.2f} bits a layer on average",
        f"{plan.bits_per_weight:.2f} stored bits per weight",
        f"weights {format_bytes(plan.bytes.weights)}",
        f"needs {format_bytes(plan.bytes.total)}",
    ]
    if plan.predicted_loss is not None:
        facts.append(f"predicted KL {plan.predicted_loss:.3g}")
    if any(layer.precision == MIXED for layer in plan.layers):
        outside = {n: kind for n, kind in plan.tensors.items() if n in _EMBEDDING_AND_HEAD}
        facts[0] = ", ".join(f"{name.removesuffix('.weight')} {kind}" for name, kind in outside.items())
    if plan.budget_bytes is not None:
        facts.append(f"budget {format_bytes(plan.budget_bytes)}" + ("" if plan.fits else ": does not fit"))
    return " · ".join(facts)


def _bits_colour(bits: float) -> str:
    return next(colour for least, colour in _BY_BITS if bits >= least)
