"""``lamella measure``: what each layer contributes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lamella import api
from lamella.cli.deliver import deliver
from lamella.cli.options import ModelArgument, PlotOption, output_option
from lamella.cli.output import JsonFlag, bar, progress, say, stdout, table
from lamella.config import Config
from lamella.core.artifacts import Measurement
from lamella.core.precision import Scheme
from lamella.measuring import METRICS, MeasureSettings
from lamella.measuring.settings import PROBE, Level
from lamella.report.plots import plot_measurement

SHOWN_TENSORS = 10
MOST_SAMPLES = 10_000


def measure(
    model: ModelArgument,
    metric: Annotated[str, typer.Option(help=f"One of {', '.join(METRICS)}.")] = "jaccard",
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TASK=]FILE", help="Text to measure on; may be given several times. Default: the model's own."
        ),
    ] = None,
    k: Annotated[int, typer.Option(help="Size of the token sets of jaccard.")] = 20,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Windows of text for each task. Default: 32, of the model's own text 16; of sensitivity 2 and 8.",
            max=MOST_SAMPLES,
        ),
    ] = None,
    window_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens in a window. Default: 128, of the model's own text 64; of sensitivity 224 and 64."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Where windows lie, or what the model writes.")] = 0,
    scheme: Annotated[Scheme, typer.Option(help="How weight-difference rounds.")] = "block",
    level: Annotated[Level, typer.Option(help="Sensitivity of each tensor, or of each layer as a whole.")] = "tensor",
    probe: Annotated[str, typer.Option(help="ggml type that sensitivity rounds to.")] = PROBE,
    imatrix: Annotated[
        Path | None, typer.Option(help="Importance matrix that sensitivity rounds with, as the build will.")
    ] = None,
    out: Annotated[Path | None, output_option(help="Write the measurement to this file.")] = None,
    plot: PlotOption = None,
    json: JsonFlag = False,
) -> None:
    """Measure how much each layer contributes, on texts of your tasks or on text that the model writes itself.

    Sensitivity probes every tensor, which takes minutes; with --out an interrupted run goes on where it was.
    """
    settings = MeasureSettings(
        k=k,
        samples=samples,
        window_tokens=window_tokens,
        seed=seed,
        scheme=scheme,
        level=level,
        probe=probe,
        n_threads=Config.from_environment(os.environ).n_threads,
    )
    matrix = api.read_importance(imatrix) if imatrix else None
    journal = out.with_name(f".{out.name}.probes") if out and metric == "sensitivity" else None
    with progress(f"measuring {metric}", quiet=json) as update:
        found = api.measure(
            model, metric, calibration=calibration or (), settings=settings,
            importance=matrix, journal=journal, on_progress=update,
        )  # fmt: skip
    deliver(found, out=out, plot=plot, draw=plot_measurement, show=show_measurement, json=json)


def show_measurement(measurement: Measurement) -> None:
    """A table of the layers with bars."""
    texts = ", ".join(f"{t.task} ({t.n_samples} samples)" for t in measurement.texts) or "weights only"
    say(f"{measurement.metric} of {measurement.model.name}; {texts}")
    tasks = list(measurement.per_task) if len(measurement.per_task) > 1 else []
    precisions = list(measurement.per_precision)
    shown = table(">layer", ">score", ">± s.e.", *(f">{t}" for t in (*tasks, *precisions)), "")
    largest = max((score.mean for score in measurement.layers), default=0.0) or 1.0
    for i, score in enumerate(measurement.layers):
        lists = [measurement.per_task[t] for t in tasks] + [measurement.per_precision[p] for p in precisions]
        more = [f"{scores[i].mean:.4f}" for scores in lists]
        error = f"{score.standard_error:.4f}" if score.standard_error else ""
        shown.add_row(str(score.layer), f"{score.mean:.4f}", error, *more, bar(score.mean / largest))
    stdout.print(shown)
    _show_tensors(measurement)


def _show_tensors(measurement: Measurement) -> None:
    """The tensors that lose most, and whether single losses add up."""
    if not measurement.tensors:
        return
    probe = measurement.settings["probe"]
    say(f"largest losses of single tensors at {probe}, in nats a token (KL from the untouched model)")
    shown = table("tensor", ">loss", ">± s.e.", "")
    ranked = sorted(measurement.tensors, key=lambda t: -t.mean)[:SHOWN_TENSORS]
    largest = max(ranked[0].mean, 1e-12)
    for tensor in ranked:
        shown.add_row(
            tensor.tensor, f"{tensor.mean:.5f}", f"{tensor.standard_error:.5f}", bar(max(0.0, tensor.mean) / largest)
        )
    stdout.print(shown)
    for check in measurement.checks:
        say(
            f"all tensors at {check.type_name}: single losses add up to {check.predicted:.4f}, "
            f"measured {check.measured:.4f} ± {check.standard_error:.4f}"
        )
