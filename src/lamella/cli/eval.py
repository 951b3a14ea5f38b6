"""``lamella eval``: how good the variants of a store are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lamella import api
from lamella.cli.options import CheckFlag, ChunksOption, split_target
from lamella.cli.output import JsonFlag, note, print_json, progress, say, stdout, table
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from lamella.core.units import format_bytes
from lamella.evaluating.evaluation import WINDOW_TOKENS, Evaluation, Exams, Row
from lamella.evaluating.scoring import AnswerScores, ChoiceScores
from lamella.evaluating.statistics import Estimate
from lamella.version import __version__


def evaluate(
    target: Annotated[str, typer.Argument(metavar="STORE[@VARIANT]", help="Store, and a variant of it.")],
    variants: Annotated[
        list[str] | None, typer.Argument(metavar="[VARIANT]...", help="More variants. Default: all of the store.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Text for perplexity, KL divergence and agreement.")] = None,
    window_tokens: Annotated[int, typer.Option(help="Tokens of a window; the second half is scored.")] = WINDOW_TOKENS,
    chunks: ChunksOption = None,
    reference: Annotated[
        str | None, typer.Option(help="Variant that others are compared with. Default: the largest.")
    ] = None,
    no_kl: Annotated[bool, typer.Option("--no-kl", help="Compare with no reference.")] = False,
    task: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Tasks, one JSON object a line; may be given repeatedly.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Items of each tasks file, evenly spaced. Default: all.")] = None,
    check: CheckFlag = False,
    json: JsonFlag = False,
) -> None:
    """Evaluate variants: perplexity as llama-perplexity has it, KL divergence from a reference, tasks."""
    if no_kl and reference:
        raise InvalidRequest("--no-kl compares with nothing; leave out --reference, or --no-kl")
    folder, first = split_target(target)
    exams = Exams(
        text=text,
        window_tokens=window_tokens,
        n_windows=chunks,
        kl=not no_kl,
        tasks=tuple(task or ()),
        limit=limit,
        n_threads=Config.from_environment(os.environ).n_threads,
        check=check,
    )
    names = [*([first] if first else []), *(variants or [])]
    with progress("evaluating", quiet=json) as update:
        found = api.evaluate(folder, names, exams, reference=reference, on_progress=update)
    if json:
        print_json({"store": str(folder), **evaluation_fields(found, exams)})
    else:
        show_evaluation(found)


def show_evaluation(found: Evaluation) -> None:
    """A table for the text and one for the tasks."""
    against = f"; reference {found.reference}" if found.reference else ""
    if found.text:
        say(f"{found.text.path}, {found.n_windows} windows{against}")
        shown = table("variant", ">size", ">perplexity", ">KL divergence", ">same top token", ">ln PPL ratio")
        for name, row in found.rows.items():
            if (t := row.text) is not None:
                figures = (t.perplexity, t.kl, t.agreement, t.loss_difference)
                shown.add_row(name, format_bytes(row.variant.n_bytes), *(_figure(f) for f in figures))
        stdout.print(shown)
    if found.tasks:
        shown = table("task", "variant", ">items", ">acc", ">acc_norm", ">acc - reference", ">loss", ">perplexity")
        for tasks in found.tasks:
            for name, row in found.rows.items():
                if (scores := row.tasks.get(tasks.name)) is not None:
                    shown.add_row(tasks.name, name, str(scores.n_items), *_task_figures(scores))
        stdout.print(shown)
    for name, n_cut in found.n_cut.items():
        if n_cut:
            note(f"{name}: {n_cut} items do not fit the model's context and lost their start")


def _task_figures(scores: ChoiceScores | AnswerScores) -> tuple[str, ...]:
    if isinstance(scores, AnswerScores):
        return "", "", "", _figure(scores.loss), _figure(scores.perplexity)
    return _figure(scores.acc), _figure(scores.acc_norm), _figure(scores.acc_difference), "", ""


def _figure(figure: Estimate | None) -> str:
    return "" if figure is None else str(figure)


def evaluation_fields(found: Evaluation, exams: Exams) -> dict[str, Any]:
    """The document of ``--json``: what was evaluated on, and one entry for each variant."""
    text = found.text
    return {
        "tool_version": __version__,
        "reference": found.reference,
        "text": text
        and {
            "path": str(text.path),
            "sha256": text.sha256,
            "window_tokens": exams.window_tokens,
            "windows": found.n_windows,
        },
        "tasks": [
            {
                "name": t.name,
                "path": str(t.path),
                "sha256": t.sha256,
                "items": len(t.items),
                "available": t.n_available,
                "cut": found.n_cut[t.name],
            }
            for t in found.tasks
        ],
        "variants": [_row_fields(row) for row in found.rows.values()],
        "seconds": found.seconds,
    }


def _row_fields(row: Row) -> dict[str, Any]:
    text = row.text
    return {
        "name": row.variant.name,
        "bytes": row.variant.n_bytes,
        "bits_per_weight": row.variant.plan.bits_per_weight,
        "text": text
        and {
            "perplexity": _estimate(text.perplexity),
            "loss": _estimate(text.loss),
            "loss_difference": _estimate(text.loss_difference),
            "kl": _estimate(text.kl),
            "agreement": _estimate(text.agreement),
            "tokens": text.n_tokens,
        },
        "tasks": {name: _task_fields(scores) for name, scores in row.tasks.items()},
    }


def _task_fields(scores: ChoiceScores | AnswerScores) -> dict[str, Any]:
    if isinstance(scores, AnswerScores):
        return {
            "loss": _estimate(scores.loss),
            "perplexity": _estimate(scores.perplexity),
            "items": scores.n_items,
            "tokens": scores.n_tokens,
        }
    return {
        "acc": _estimate(scores.acc),
        "acc_norm": _estimate(scores.acc_norm),
        "acc_difference": _estimate(scores.acc_difference),
        "items": scores.n_items,
    }


def _estimate(figure: Estimate | None) -> dict[str, float | None] | None:
    return None if figure is None else {"value": figure.value, "standard_error": figure.standard_error}
