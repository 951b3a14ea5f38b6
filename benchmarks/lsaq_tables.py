"""LSAQ's Tables I and III: layers at INT8 and INT4 by their importance, on the models at hand.

    .venv/bin/python -m benchmarks.lsaq_tables [--model smollm2] [--windows 12] [--limit 50] [--fresh]

At 7, 6 and 5 bits a quarter, half and three quarters of the layers are INT4, the least important first, by Jaccard
(LSAQ), cosine and outliers (LWQ), KL sensitivity (ours) and chance; 8 and 4 bits are the same for all.  Each with one
scale a row (``channel``, LSAQ eq. 4) and in ggml's blocks (``block``); embedding and head stay as they are.  Importance
is read on wiki.valid.raw, perplexity on wiki.test.raw, tasks on evenly spaced items of PIQA, ARC-Easy, BoolQ, HellaSwag
and WinoGrande (``acc``; chance reads the text only).

One store a scheme, one load, all variants through live switches.  Every finished variant is kept in ``--work``, so an
interrupted run goes on.  Comparisons are paired, window by window and item by item.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import lamella
from benchmarks.common import DATA, open_model, record, reference_model, table
from benchmarks.stores import resumed_folder
from lamella.core.errors import InvalidRequest
from lamella.core.precision import Scheme
from lamella.evaluating.scoring import ChoiceScores, TaskExam
from lamella.evaluating.statistics import Estimate, exponential, mean
from lamella.evaluating.subject import Subject
from lamella.evaluating.tasks import read_tasks
from lamella.evaluating.text import TextExam, read_text
from lamella.llama.gguf import ModelFile
from lamella.llama.logits import token_losses
from lamella.planning.cost import Choice, average_bits, build_plan
from lamella.planning.request import KEEP, Overhead, PlanRequest
from lamella.quantize.build import build_variant
from lamella.store.store import Store

CALIBRATION = DATA / "wikitext2" / "wiki.valid.raw"
TEXT = DATA / "wikitext2" / "wiki.test.raw"
TASKS = ("piqa", "arc_easy", "boolq", "hellaswag", "winogrande")
WINDOW_TOKENS = 512
BITS = (7, 6, 5)
SCHEMES: tuple[Scheme, ...] = ("channel", "block")
METRICS = ("jaccard", "cosine", "outlier", "sensitivity", "random")
SURE = 2.0  # standard errors
FP16, INT8, INT4 = "fp16", "int8", "int4"


@dataclass(frozen=True, slots=True)
class Settings:
    """What results may be compared under; a run goes on only with results of equal settings."""

    model: str
    weights: str
    windows: int
    limit: int
    tasks: tuple[str, ...]

    @property
    def key(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of the tables: which layers are INT4, and who chose them."""

    scheme: Scheme
    metric: str
    bits: int
    precisions: tuple[str, ...]

    @property
    def variant(self) -> str:
        """Equal choices have equal names, whoever made them."""
        mask = sum(1 << i for i, precision in enumerate(self.precisions) if precision == INT4)
        return self.precisions[0] if len(set(self.precisions)) == 1 else f"int4-{mask:x}"

    @property
    def reads_tasks(self) -> bool:
        return not self.metric.startswith("random")


@dataclass(slots=True)
class Scores:
    """What one variant did: mean loss of each window, and which items of each task it got right."""

    losses: list[float] = field(default_factory=list)
    correct: dict[str, list[bool]] = field(default_factory=dict)

    @property
    def perplexity(self) -> Estimate:
        return exponential(mean(self.losses))

    @property
    def accuracy(self) -> Estimate | None:
        return _mean_over([[float(c) for c in right] for right in self.correct.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--windows", type=int, default=12, help=f"of {WINDOW_TOKENS} tokens of wiki.test.raw")
    parser.add_argument("--limit", type=int, default=50, help="items of each task")
    parser.add_argument("--metrics", type=lambda s: s.split(","), default=list(METRICS))
    parser.add_argument("--schemes", type=lambda s: s.split(","), default=list(SCHEMES))
    parser.add_argument("--seeds", type=int, default=3, help="of the chance rankings")
    parser.add_argument(
        "--work", type=Path, help="for stores and finished rows of each commit; default: a temporary one"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted run has finished")
    args = parser.parse_args()
    run(args, resumed_folder(args.work, f"lsaq-{args.model}"))


def run(args: argparse.Namespace, work: Path) -> None:
    if args.fresh:
        shutil.rmtree(work, ignore_errors=True)
    model = open_model(reference_model(args.model))
    settings = Settings(args.model, model.spec.identity.weights, args.windows, args.limit, TASKS)
    rankings = rank_layers(model, args.metrics, args.seeds, work / "rankings.json")
    n_layers = model.spec.n_layers
    scores: dict[Cell, Scores] = {}
    for scheme in args.schemes:
        cells = choose_cells(scheme, rankings, n_layers)
        found = evaluate_cells(model, cells, settings, work / scheme)
        scores |= {cell: found[cell.variant] for cell in cells}
    show(scores)
    verdicts = judge(scores)
    for verdict in verdicts:
        print(f"{verdict['verdict']:>14}: {verdict['claim']}: {verdict['found']}")
    record(
        f"lsaq_tables-{args.model}",
        {
            "model": args.model,
            "windows": args.windows,
            "window_tokens": WINDOW_TOKENS,
            "items_of_each_task": args.limit,
            "rankings": {metric: [round(x, 6) for x in scores_] for metric, scores_ in rankings.items()},
            "claims": verdicts,
            "rows": [_row_fields(cell, found) for cell, found in scores.items()],
        },
    )


def rank_layers(model: ModelFile, metrics: Sequence[str], seeds: int, kept: Path) -> dict[str, tuple[float, ...]]:
    """Importance of each layer by metric; measured once and kept in a file."""
    known: dict[str, list[float]] = json.loads(kept.read_text()) if kept.exists() else {}
    rankings: dict[str, tuple[float, ...]] = {}
    for metric in metrics:
        if metric == "random":
            for seed in range(seeds):
                order = np.random.default_rng(seed).permutation(model.spec.n_layers)
                rankings[f"random-{seed}"] = tuple(float(x) for x in order)
            continue
        key = f"{model.spec.identity.weights[:12]}-{metric}"
        if key not in known:
            _say(f"measuring {metric}")
            try:
                measured = lamella.measure(model.paths[0], metric, calibration=[str(CALIBRATION)])
            except InvalidRequest as error:
                _say(f"{metric} is left out: {error}")
                continue
            known[key] = list(measured.importance())
            _write(kept, known)
        rankings[metric] = tuple(known[key])
    return rankings


def choose_cells(scheme: Scheme, rankings: Mapping[str, Sequence[float]], n_layers: int) -> list[Cell]:
    """Every entry of the tables for a scheme, the ends and the unquantized model included."""
    ends = [(16, FP16), (8, INT8), (4, INT4)]
    cells = [Cell(scheme, "all", bits, (precision,) * n_layers) for bits, precision in ends]
    for metric, importance in rankings.items():
        least_first = sorted(range(n_layers), key=lambda i: (importance[i], i))
        for bits in BITS:
            chosen = set(least_first[: math.floor((8 - bits) / 4 * n_layers + 0.5)])
            cells.append(Cell(scheme, metric, bits, tuple(INT4 if i in chosen else INT8 for i in range(n_layers))))
    return cells


def evaluate_cells(model: ModelFile, cells: Sequence[Cell], settings: Settings, folder: Path) -> dict[str, Scores]:
    """Scores by variant: those of an earlier run, and the rest of this one, each kept as soon as it is there."""
    kept = folder / f"scores-{settings.key}.json"
    found = {name: Scores(**row) for name, row in (json.loads(kept.read_text()) if kept.exists() else {}).items()}
    with_tasks = {c.variant for c in cells if c.reads_tasks}
    wanted = {c.variant: c for c in cells}
    todo = [v for v in wanted if v not in found or (v in with_tasks and not found[v].correct)]
    if not todo:
        return found
    store = Store.create(folder / "store", model.spec.identity)
    have = {v.name for v in store.variants()}
    for name in todo:
        if name not in have:
            build_variant(model, _plan(model, wanted[name]), store, name)
    with Subject(store, [store.variant(name) for name in todo]) as subject:
        text = TextExam(read_text(TEXT), subject.model, WINDOW_TOKENS, settings.windows)
        tasks = [TaskExam(read_tasks(DATA / f"{t}.jsonl", settings.limit), subject.model) for t in settings.tasks]
        room = text.room
        for task in tasks:
            room = room.joined(task.room)
        subject.make_room(room)
        for i, name in enumerate(todo, 1):
            scores = found.setdefault(name, Scores())
            scores.losses = scores.losses or read_windows(subject, text, name)
            if name in with_tasks:
                scores.correct = {task.tasks.name: answer_items(subject, task, name) for task in tasks}
            _write(kept, {n: {"losses": s.losses, "correct": s.correct} for n, s in found.items()})
            _say(f"{folder.name} {i}/{len(todo)} {name}: perplexity {scores.perplexity}, accuracy {scores.accuracy}")
    return found


def read_windows(subject: Subject, text: TextExam, variant: str) -> list[float]:
    """Mean loss of each window's scored half."""
    subject.use(variant)
    losses = []
    for window in text.windows:
        logits = subject.window_logits(window.fed, text.room.n_outputs)[:-1]
        losses.append(float(token_losses(logits, subject.survey(logits).normalizers, window.targets).mean()))
    return losses


def answer_items(subject: Subject, task: TaskExam, variant: str) -> list[bool]:
    """Which items of a task are right."""
    scores = task.run(subject, [variant], None, lambda _: None)[variant]
    assert isinstance(scores, ChoiceScores)  # none of TASKS asks for answers
    return list(scores.correct)


def show(scores: Mapping[Cell, Scores]) -> None:
    """Table III with Table I beside it, for each scheme; chance as the mean over its seeds."""
    for scheme in dict.fromkeys(cell.scheme for cell in scores):
        rows: list[list[object]] = [["layers by", "bits", "perplexity", "+-", *TASKS, "mean acc", "+-"]]
        for cell, found in scores.items():
            if cell.scheme == scheme:
                rows.append(_shown(cell, found))
        print(f"\n{scheme}")
        table(rows)
    print()


def _shown(cell: Cell, found: Scores) -> list[object]:
    perplexity, accuracy = found.perplexity, found.accuracy
    figures = [f"{perplexity.value:.3f}", _error(perplexity, 1)]
    if accuracy is None:
        return [cell.metric, f"{average_bits(cell.precisions):.2f}", *figures, *[""] * (len(TASKS) + 2)]
    figures += [f"{100 * mean([float(c) for c in found.correct[t]]).value:.1f}" for t in TASKS]
    figures += [f"{100 * accuracy.value:.1f}", _error(accuracy, 100)]
    return [cell.metric, f"{average_bits(cell.precisions):.2f}", *figures]


def judge(scores: Mapping[Cell, Scores]) -> list[dict[str, Any]]:
    """The paper's claims, and ours, against what was found."""
    at = {(c.scheme, c.metric, c.bits): found for c, found in scores.items()}
    schemes = list(dict.fromkeys(c.scheme for c in scores))
    metrics = list(dict.fromkeys(c.metric for c in scores))
    places = [(s, b) for s in schemes for b in BITS]
    verdicts = [_negligible(at, schemes), *(_degradation(at, s, metrics) for s in schemes)]
    if {"jaccard", "cosine"} <= set(metrics):
        pairs = [(at[s, "jaccard", b], at[s, "cosine", b]) for s, b in places]
        verdicts.append(_share("LSAQ: lower perplexity than LWQ's cosine in 90 % of cases", 0.9, pairs, _lower_loss))
        verdicts.append(
            _share("LSAQ: higher mean accuracy than cosine in all cases (equal choices aside)", 1.0, pairs, _more_right)
        )
        one_by_one = [(_only(a, t), _only(b, t)) for a, b in pairs if a is not b for t in TASKS]
        verdicts.append(_share("LSAQ: more accurate than cosine on 87.5 % of tasks", 0.875, one_by_one, _more_right))
    chance = [m for m in metrics if m.startswith("random")]
    for metric, name in (("jaccard", "LSAQ"), ("cosine", "LWQ"), ("sensitivity", "ours")):
        if metric in metrics and chance:
            pairs = [(at[s, metric, b], at[s, m, b]) for s, b in places for m in chance]
            verdicts.append(_share(f"{name}: lower perplexity than layers by chance", 0.9, pairs, _lower_loss))
    if {"sensitivity", "jaccard"} <= set(metrics):
        pairs = [(at[s, "sensitivity", b], at[s, "jaccard", b]) for s, b in places]
        verdicts.append(_share("ours: lower perplexity than LSAQ in all cases", 1.0, pairs, _lower_loss))
    return verdicts


Found = Mapping[tuple[Scheme, str, int], Scores]


def _negligible(at: Found, schemes: Sequence[Scheme]) -> dict[str, Any]:
    rises = {s: at[s, "all", 8].perplexity.value / at[s, "all", 16].perplexity.value - 1 for s in schemes}
    return {
        "claim": "LSAQ: the loss of INT8 is negligible (perplexity rises by less than 1 %)",
        "verdict": "holds" if max(rises.values()) < 0.01 else "does not hold",
        "found": ", ".join(f"{s} {100 * rise:+.2f} %" for s, rise in rises.items()),
    }


def _degradation(at: Found, scheme: Scheme, metrics: Sequence[str]) -> dict[str, Any]:
    """Table III: from 8 to 6 bits +10.7, +3.5 and +12.1 % for LSAQ, and all INT4 is the worst."""
    metric = "jaccard" if "jaccard" in metrics else next(m for m in metrics if m != "all")
    steps = [at[scheme, "all", 8], *(at[scheme, metric, b] for b in BITS), at[scheme, "all", 4]]
    values = [s.perplexity.value for s in steps]
    is_small, is_ordered = values[2] / values[0] < 1.122, values == sorted(values)
    return {
        "claim": f"LSAQ: little is lost down to 6 bits (at most 12 %), and more with each step ({scheme}, {metric})",
        "verdict": "holds" if is_small and is_ordered else "does not hold",
        "found": f"8 to 6 bits {100 * (values[2] / values[0] - 1):+.1f} %; " + " -> ".join(f"{v:.2f}" for v in values),
    }


def _share(
    claim: str,
    least: float,
    pairs: Iterable[tuple[Scores, Scores]],
    gain: Callable[[Scores, Scores], Estimate | None],
) -> dict[str, Any]:
    """In how many cases the first of a pair gains; surely where by more than ``SURE`` standard errors."""
    gains = [g for a, b in pairs if a is not b and (g := gain(a, b)) is not None]
    better = sum(g.value > 0 for g in gains)
    equal = sum(g.value == 0 for g in gains)
    surely = [math.copysign(1, g.value) for g in gains if abs(g.value) > SURE * (g.standard_error or math.inf)]
    n = len(gains)
    holds = better >= least * (n - equal)
    return {
        "claim": claim,
        "verdict": "no case" if n == equal else "holds" if holds else "does not hold",
        "found": f"{better} of {n} ({equal} equal); surely better {surely.count(1)}, surely worse {surely.count(-1)}; "
        f"mean gain {statistics.fmean(g.value for g in gains) if gains else 0:+.4f}",
        "better": better,
        "equal": equal,
        "cases": n,
        "surely_better": surely.count(1),
        "surely_worse": surely.count(-1),
    }


def _lower_loss(a: Scores, b: Scores) -> Estimate | None:
    """By how much ``ln`` of the perplexity is lower, window by window."""
    return mean([y - x for x, y in zip(a.losses, b.losses, strict=True)])


def _more_right(a: Scores, b: Scores) -> Estimate | None:
    """By how much mean accuracy is higher, item by item."""
    return _mean_over(
        [[float(x) - float(y) for x, y in zip(a.correct[t], b.correct[t], strict=True)] for t in a.correct]
    )


def _mean_over(tasks: Sequence[Sequence[float]]) -> Estimate | None:
    """Mean of the tasks' means, which are independent of each other."""
    if not tasks:
        return None
    means = [mean(values) for values in tasks]
    error = math.sqrt(sum((m.standard_error or 0) ** 2 for m in means)) / len(means)
    return Estimate(statistics.fmean(m.value for m in means), error)


def _only(scores: Scores, task: str) -> Scores:
    return Scores(scores.losses, {task: scores.correct[task]})


def _plan(model: ModelFile, cell: Cell) -> Any:
    is_whole = cell.precisions[0] == FP16  # eq. 4 knows no FP16
    request = PlanRequest(model.spec, scheme="block" if is_whole else cell.scheme)
    return build_plan("lsaq-tables", request, Overhead(), Choice(cell.precisions, KEEP))


def _row_fields(cell: Cell, found: Scores) -> dict[str, Any]:
    return {
        "scheme": cell.scheme,
        "metric": cell.metric,
        "bits": cell.bits,
        "average_bits": average_bits(cell.precisions),
        "int4_layers": [i for i, p in enumerate(cell.precisions) if p == INT4],
        "perplexity": _fields(found.perplexity),
        "accuracy": _fields(found.accuracy),
        "tasks": {t: _fields(mean([float(c) for c in right])) for t, right in found.correct.items()},
    }


def _fields(figure: Estimate | None) -> dict[str, float | None] | None:
    return None if figure is None else {"value": figure.value, "standard_error": figure.standard_error}


def _error(figure: Estimate | None, scale: float) -> str:
    return "" if figure is None or figure.standard_error is None else f"{scale * figure.standard_error:.2f}"


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(document))
    partial.rename(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
