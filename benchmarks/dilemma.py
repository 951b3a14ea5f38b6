"""DILEMMA's experiment on the models at hand: bits and loss for delta from 0.001 to 1.0, links and processors.

    python -m benchmarks.dilemma [--model smollm2] [--limit 60] [--scored 0.01,0.1] [--only plans,quality]

The cluster is the paper's kind: three unequal edge servers and a cloud in a mesh.  For each delta the joint program
chooses nodes and bits; loss is how likely the answers of SQuAD are (``lamella eval``'s measure).  ``delta`` is the mean
over the layers of ||W - Q(W)|| / ||W||, Q the paper's truncation; beside it ggml's blocks under the same deltas.
``sensitivity`` plans alone, for the model and for OPT-350m, the paper's own, whose weight differences are taken to be
the model's means.  docs/dilemma.md reads the results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lamella
from benchmarks.common import DATA, RESULTS, open_model, record, reference_model, run_facts, table
from benchmarks.dilemma_cluster import MENU, bits_ratio, question, sensitivity, spread_over
from benchmarks.finished import Finished
from benchmarks.stores import resumed_folder
from lamella.core.artifacts import Measurement
from lamella.core.errors import NoPlacement
from lamella.core.precision import Scheme
from lamella.evaluating.scoring import AnswerScores, TaskExam
from lamella.evaluating.subject import Subject
from lamella.evaluating.tasks import read_tasks
from lamella.llama.gguf import ModelFile
from lamella.measuring.settings import MeasureSettings
from lamella.planning.cost import Choice, build_plan, realise
from lamella.planning.placement import place
from lamella.planning.placement.layers import layers_of
from lamella.planning.request import KEEP, Overhead, PlanRequest
from lamella.planning.specs import builtin_spec
from lamella.quantize.build import build_variant
from lamella.store.store import Store

DELTAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SCHEMES: tuple[Scheme, ...] = ("truncate", "block")
SENSITIVE_AT = 0.1
"""Delta of the plans whose links and processors are changed."""
GAP = 0.001


@dataclass(frozen=True, slots=True)
class Planned:
    """What the joint program chose at a delta."""

    scheme: Scheme
    delta: float
    precisions: tuple[str, ...]
    nodes: tuple[str, ...]
    seconds: float
    difference: float
    ratio: float

    @property
    def variant(self) -> str:
        """Equal choices have equal names."""
        return "p-" + hashlib.sha256(" ".join(self.precisions).encode()).hexdigest()[:10]


def main() -> None:
    """Plan, evaluate, and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--limit", type=int, default=60, help="questions of SQuAD")
    parser.add_argument(
        "--work",
        type=Path,
        help="folder for stores, finished scores and points of each commit; default: a temporary one",
    )
    parser.add_argument(
        "--scored", type=_numbers, default=DELTAS, help="deltas whose plans are scored, as 0.01,0.1; default: all"
    )
    parser.add_argument("--only", default="plans,quality,sensitivity")
    asked = parser.parse_args()
    parts = asked.only.split(",")
    model = open_model(reference_model(asked.model))
    work = resumed_folder(asked.work, f"dilemma-{asked.model}")
    measured = {scheme: _measure(model, scheme) for scheme in SCHEMES}
    name = f"dilemma-{asked.model}"
    found = recorded(RESULTS / f"{name}.json")
    if "plans" in parts or "quality" in parts:
        planned = [p for scheme in SCHEMES for p in plans(model, measured[scheme], scheme)]
        scored = [p for p in planned if p.delta in asked.scored]
        scores = evaluate(model, scored, asked.limit, work) if "quality" in parts else {}
        found["rows"] = [fields(p, scores.get((p.scheme, p.variant))) for p in planned]
        found |= {"questions": asked.limit if "quality" in parts else 0}
        found["runs"]["rows"] = run_facts()
        show(found["rows"])
    if "sensitivity" in parts:
        found["sensitivity"] = sensitivities(model, measured["truncate"], asked.model, work)
        found["runs"]["sensitivity"] = run_facts()
    differences = {s: {p: means(m)[p] for p in m.per_precision} for s, m in measured.items()}
    record(name, {"model": asked.model, "mean_differences": differences, **found})


def recorded(path: Path) -> dict[str, Any]:
    """The parts of the record that are there: what is not measured now stays as it is."""
    known = json.loads(path.read_text()) if path.exists() else {}
    runs = {"rows": {key: known[key] for key in ("date", "commit", "command")}} if "rows" in known else {}
    found = {key: known[key] for key in ("questions", "rows", "sensitivity") if key in known}
    return {"runs": known.get("runs", runs), **found}


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _measure(model: ModelFile, scheme: Scheme) -> Measurement:
    return lamella.measure(model.paths[0], "weight-difference", settings=MeasureSettings(scheme=scheme))


def plans(model: ModelFile, measured: Measurement, scheme: Scheme) -> list[Planned]:
    """The joint plan at each delta that can be kept."""
    layers = layers_of(model.spec, measured, different(model, scheme))
    found = []
    for delta in DELTAS:
        problem = question(model.spec, layers, delta)
        try:
            solution = place(problem, gap=GAP)
        except NoPlacement as error:
            print(f"delta {delta}: {error}", file=sys.stderr)
            continue
        account = solution.account
        chosen = solution.placement.precisions
        nodes = tuple(f"{s.node}:{len(s.precisions)}" for s in solution.placement.segments)
        mean = account.loss / len(layers)
        found.append(Planned(scheme, delta, chosen, nodes, account.seconds, mean, bits_ratio(chosen)))
    return found


def different(model: ModelFile, scheme: Scheme) -> list[str]:
    """The menu without names that mean the same: short rows have no type of 6 bits and take 8; codes have any bits."""
    if scheme != "block":
        return list(MENU)
    types = {name: tuple(realise(model.spec, [name] * model.spec.n_layers).items()) for name in MENU}
    return list({of_name: name for name, of_name in reversed(types.items())}.values())[::-1]


def evaluate(
    model: ModelFile, planned: Sequence[Planned], limit: int, work: Path
) -> dict[tuple[Scheme, str], dict[str, float]]:
    """SQuAD's loss of each different plan, and of the model itself; each is kept as soon as it is there."""
    found: dict[tuple[Scheme, str], dict[str, float]] = {}
    for scheme in SCHEMES:
        different = {p.variant: p.precisions for p in planned if p.scheme == scheme}
        kept = work / f"{scheme}-{limit}.json"
        scores = json.loads(kept.read_text()) if kept.exists() else {}
        todo = {name: precisions for name, precisions in different.items() if name not in scores}
        for name, score in _scores(model, scheme, todo, limit, work / scheme) if todo else ():
            scores[name] = score
            kept.write_text(json.dumps(scores))
        found |= {(scheme, name): scores[name] for name in different}
    return found


def _scores(
    model: ModelFile, scheme: Scheme, todo: dict[str, tuple[str, ...]], limit: int, folder: Path
) -> Iterator[tuple[str, dict[str, float]]]:
    store = Store.create(folder, model.spec.identity)
    have = {variant.name for variant in store.variants()}
    for name, precisions in todo.items():
        if name not in have:
            whole = all(p == "fp16" for p in precisions)
            request = PlanRequest(model.spec, scheme="block" if whole else scheme)
            build_variant(model, build_plan("dilemma", request, Overhead(), Choice(precisions, KEEP)), store, name)
    with Subject(store, [store.variant(name) for name in todo]) as subject:
        exam = TaskExam(read_tasks(DATA / "squad.jsonl", limit), subject.model)
        subject.make_room(exam.room)
        for name in todo:
            score = exam.run(subject, [name], None, lambda _: None)[name]
            assert isinstance(score, AnswerScores)  # SQuAD's items have answers
            error = score.loss.standard_error or 0.0
            print(f"{scheme} {name}: loss {score.loss.value:.4f} +- {error:.4f}", file=sys.stderr)
            yield name, {"loss": score.loss.value, "error": error, "perplexity": score.perplexity.value}


def fields(planned: Planned, scores: dict[str, float] | None) -> dict[str, Any]:
    """A row of the record."""
    counts = {name: planned.precisions.count(name) for name in MENU if name in planned.precisions}
    return {**asdict(planned), "layers_at": counts, **(scores or {})}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The paper's table."""
    head = ["scheme", "delta", "difference", "bits", "layers", "a request, s", "loss", "+-", "perplexity"]
    cells = [
        [
            row["scheme"], row["delta"], row["difference"], f"{100 * row['ratio']:.1f} %",
            " ".join(f"{n}x{name}" for name, n in row["layers_at"].items()), row["seconds"],
            *(f"{row[key]:.4f}" if key in row else "" for key in ("loss", "error", "perplexity")),
        ]
        for row in rows
    ]  # fmt: skip
    table([head, *cells])


def means(measured: Measurement) -> dict[str, float]:
    """Weight difference at each precision, mean over the layers."""
    return {p: sum(s.mean for s in scores) / len(scores) for p, scores in measured.per_precision.items()}


def sensitivities(model: ModelFile, measured: Measurement, name: str, work: Path) -> dict[str, Any]:
    """Time of a request when links and edge processors are faster or slower, for the model and for OPT-350m."""
    opt = builtin_spec("opt-350m")
    typical = layers_of(opt, spread_over(opt, means(measured)), MENU)
    own = question(model.spec, layers_of(model.spec, measured, MENU), SENSITIVE_AT)
    finished = Finished(work / "sensitivity.json")
    opts = question(opt, typical, SENSITIVE_AT)
    return {name: sensitivity(own, finished), "opt-350m": sensitivity(opts, finished)}


if __name__ == "__main__":
    main()
