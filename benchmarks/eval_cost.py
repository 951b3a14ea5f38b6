"""Claim: evaluating three variants costs at most 1.1 times the sum of their forward passes, with one load.

    .venv/bin/python -m benchmarks.eval_cost [--model smollm2] [--windows 4] [--items 12] [--rounds 5]

``evaluate`` (perplexity with KL divergence on windows of a text; then log-likelihoods of a tasks file) alternates with
the bare forward passes of the same tokens through an equal context: decodes with logits and nothing else, the KV cache
kept where ``evaluate`` keeps it.  ``ratio`` is of the exams alone; ``with load`` counts loading, opening the shards and
tokenizing too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import DATA, open_model, record, reference_model, spread, table
from lamella.core.artifacts import Plan
from lamella.evaluating.evaluation import WINDOW_TOKENS, Exams, evaluate
from lamella.evaluating.requests import Request
from lamella.evaluating.scoring import TaskExam
from lamella.evaluating.subject import Subject
from lamella.evaluating.tasks import read_tasks
from lamella.evaluating.text import TextExam, read_text
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model
from lamella.planning.cost import Choice, build_plan
from lamella.planning.request import Overhead, PlanRequest
from lamella.quantize.build import build_variant
from lamella.run.prefix import shared_prefix
from lamella.store.store import Store

VARIANTS = ("int8", "mixed", "q4_0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, default=DATA / "wikitext2" / "wiki.test.raw")
    parser.add_argument("--tasks", type=Path, default=DATA / "hellaswag.jsonl")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    kinds = {
        "text": Exams(text=args.text, n_windows=args.windows),
        "tasks": Exams(tasks=(args.tasks,), limit=args.items),
    }
    with tempfile.TemporaryDirectory(prefix="lamella-eval-cost-") as folder:
        store = build_store(reference_model(args.model), Path(folder) / "store")
        results = {kind: compare(store, exams, args.rounds) for kind, exams in kinds.items()}
    rows: list[list[object]] = [["exam", "forward s", "evaluate s", "ratio", "with load", "loads"]]
    for kind, found in results.items():
        medians = [statistics.median(found[k]) for k in ("forward_s", "exams_s")]
        rows.append([kind, *medians, ratio(found, "exams_s"), ratio(found, "whole_s"), found["loads"][0]])
    table(rows)
    record(
        f"eval_cost-{args.model}",
        {
            "model": args.model,
            "variants": VARIANTS,
            "windows": args.windows,
            "items": args.items,
            "worst_ratio": max(ratio(found, "exams_s") for found in results.values()),
            "worst_ratio_with_load": max(ratio(found, "whole_s") for found in results.values()),
            "loads": max(max(found["loads"]) for found in results.values()),
            "exams": {
                kind: {
                    "ratio": ratio(found, "exams_s"),
                    "ratio_with_load": ratio(found, "whole_s"),
                    **{key: spread(found[key]) for key in ("forward_s", "exams_s", "whole_s")},
                }
                for kind, found in results.items()
            },
        },
    )


def build_store(source: Path, folder: Path) -> Store:
    """All INT8; every other layer INT4; all INT4: embedding and head INT8 in each."""
    model = open_model(source)
    store = Store.create(folder, model.spec.identity)
    n = model.spec.n_layers
    layers = {"int8": ["int8"] * n, "mixed": ["int8", "Q4_0"] * (n // 2) + ["int8"] * (n % 2), "q4_0": ["Q4_0"] * n}
    for name in VARIANTS:
        request = PlanRequest(model.spec)
        plan: Plan = build_plan("mixed", request, Overhead(), Choice(tuple(layers[name]), "int8"))
        build_variant(model, plan, store, name)
    return store


def compare(store: Store, exams: Exams, rounds: int) -> dict[str, list[float]]:
    """Seconds of both sides in each round; the first round only warms up."""
    found: dict[str, list[float]] = {"forward_s": [], "exams_s": [], "whole_s": [], "loads": []}
    for i in range(rounds + 1):
        forward = forward_seconds(store, exams)
        with counted_loads() as loads:
            start = time.perf_counter()
            evaluation = evaluate(store, VARIANTS, exams)
            whole = time.perf_counter() - start
        if i:
            values = (forward, evaluation.seconds, whole, float(len(loads)))
            for key, value in zip(found, values, strict=True):
                found[key].append(value)
    return found


def ratio(found: dict[str, list[float]], key: str) -> float:
    """Median over rounds: the speed of a shared machine drifts, but both sides of a round saw the same."""
    return statistics.median(ours / bare for ours, bare in zip(found[key], found["forward_s"], strict=True))


def forward_seconds(store: Store, exams: Exams) -> float:
    """The forward passes of ``exams`` for each variant, their logits left alone."""
    with Subject(store, [store.variant(name) for name in VARIANTS]) as subject:
        if exams.text:
            text = TextExam(read_text(exams.text), subject.model, WINDOW_TOKENS, exams.n_windows)
            room, passes = text.room, [(w.fed, 0, text.room.n_outputs) for w in text.windows]
        else:
            tasks = TaskExam(read_tasks(exams.tasks[0], exams.limit), subject.model)
            room, passes = tasks.room, list(task_passes([r for requests in tasks.requests for r in requests]))
        for name in VARIANTS:
            subject.use(name)  # opens its shards
        options = ContextOptions(n_ctx=room.n_ctx, n_batch=room.n_batch, n_outputs=room.n_outputs)
        with Context(subject.model, options) as context:
            start = time.perf_counter()
            for name in VARIANTS:
                subject.use(name)
                context.forget()
                for tokens, n_kept, n_outputs in passes:
                    context.keep(n_kept)
                    context.decode(tokens[n_kept:], n_kept, n_outputs=n_outputs)
            return time.perf_counter() - start


def task_passes(requests: Sequence[Request]) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Tokens, how many of them the pass before has left in the KV cache, and how many logits are wanted."""
    before: tuple[int, ...] = ()
    for request in requests:
        yield request.fed, min(shared_prefix(before, request.fed), len(request.context) - 1), len(request.continuation)
        before = request.fed


@contextmanager
def counted_loads() -> Iterator[list[Any]]:
    """A list that grows with every model that is loaded."""
    loads: list[Any] = []
    load = Model.load

    def counting(paths: Sequence[Path], **options: Any) -> Model:
        loads.append(paths)
        return load(paths, **options)

    with mock.patch.object(Model, "load", counting):
        yield loads


if __name__ == "__main__":
    main()
