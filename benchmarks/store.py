"""Claim: a ladder of six variants, planned together, takes half of six files and loses little beside plans made alone.

    .venv/bin/python -m benchmarks.store [--model qwen-1.5b] [--share 0.45] [--steps 6] [--from 8.5] [--to 3.5]

The same sizes are planned alone and together, the latter with joint bytes of at most ``--share`` times the sum.  Both
are built with the same importance matrix into one store with the F16 reference, and read the same windows of
wiki.test.raw through one loaded model: ``max_kl_ratio`` is the worst step's divergence by that of the step alone.

Against separate files (each variant alone in a store of its own, exported as one GGUF): time to build, bytes on disk,
and bytes in the page cache after all six were loaded in turn by llama.cpp and wrote a token (``fincore``).

What was measured first is kept in ``--work``, and so is what an interrupted run has built.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lamella
from benchmarks.common import DATA, record, reference_model, table
from benchmarks.measured import importance_of, say, sensitivity_of
from lamella import api
from lamella.core.artifacts import Plan
from lamella.llama.imatrix import ImportanceMatrix
from lamella.planning.ladder import JointBudget, Ladder, evenly_spaced, plan_ladder
from lamella.planning.policies import make_plan
from lamella.planning.request import PlanRequest
from lamella.store.store import Store

TEXT = DATA / "wikitext2" / "wiki.test.raw"
_OPEN = """
import sys
from pathlib import Path
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model
with Model.load([Path(p) for p in sys.argv[1:]]) as model, Context(model, ContextOptions(64, n_batch=8)) as context:
    context.decode(model.vocabulary.tokenize("The"), 0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen-1.5b")
    parser.add_argument("--share", type=float, default=0.45, help="joint bytes by the sum of the files")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--from", dest="first", type=float, default=8.5, help="bits per weight")
    parser.add_argument("--to", dest="last", type=float, default=3.5)
    parser.add_argument("--windows", type=int, default=6, help="of wiki.test.raw, 512 tokens each")
    parser.add_argument("--no-files", action="store_true", help="leave out building, disk and page cache")
    parser.add_argument("--work", type=Path, help="default: that of benchmarks.quality")
    args = parser.parse_args()
    work = args.work or Path(tempfile.gettempdir()) / f"lamella-quality-{args.model}"
    work.mkdir(parents=True, exist_ok=True)
    model = reference_model(args.model)
    importance = importance_of(model, work)
    losses = tuple(sensitivity_of(model, importance, work).tensors)
    spec = api.load(model).spec
    requests = [
        replace(PlanRequest(spec, losses=losses), weights_bytes=size)
        for size in evenly_spaced(spec, args.steps, args.first, args.last)
    ]
    alone = {f"alone-{i + 1}": make_plan("knapsack", request) for i, request in enumerate(requests)}
    budget = JointBudget(n_bytes=int(args.share * sum(plan.bytes.weights for plan in alone.values())))
    start = time.perf_counter()
    ladder = plan_ladder(requests, budget)
    planned_s = time.perf_counter() - start
    together = {f"step-{i + 1}": step.plan for i, step in enumerate(ladder.steps)}
    folder = work / f"ladder-{args.share:g}-{args.steps}-{args.first:g}-{args.last:g}"
    found = _divergences(model, folder / "all", {**alone, **together}, importance, args.windows)
    costs = {} if args.no_files else _costs(model, folder, alone, together, importance)
    shutil.rmtree(folder)
    _report(args.model, ladder, found, costs, planned_s, args.windows)


def _divergences(
    model: Path, store: Path, plans: Mapping[str, Plan], importance: ImportanceMatrix, n_windows: int
) -> dict[str, list[float]]:
    """KL(reference || variant) and its standard error of every plan, in nats a token."""
    reference = lamella.plan(model, "uniform", precision="fp16", outside="keep")
    for name, plan in {"reference": reference, **plans}.items():
        say(f"building {name}")
        lamella.build(model, store, plan, name, importance=importance)
    exams = lamella.Exams(text=TEXT, n_windows=n_windows)
    found = lamella.evaluate(store, ["reference", *plans], exams, reference="reference")
    shutil.rmtree(store)
    return {
        name: [row.text.kl.value, row.text.kl.standard_error or 0.0]
        for name, row in found.rows.items()
        if row.text and row.text.kl
    }


def _costs(
    model: Path, folder: Path, alone: Mapping[str, Plan], together: Mapping[str, Plan], importance: ImportanceMatrix
) -> dict[str, dict[str, float]]:
    """Seconds to build, bytes on disk and bytes in the page cache: of the ladder's store, and of separate files."""
    store = folder / "ladder"
    start = time.perf_counter()
    for name, plan in together.items():
        lamella.build(model, store, plan, name, importance=importance)
    seconds = time.perf_counter() - start
    opened = Store.open(store)
    shards = [opened.shard_paths(variant) for variant in opened.variants()]
    shared = {"build_s": seconds, **_on_disk_and_cached(shards)}
    shutil.rmtree(store)
    start = time.perf_counter()
    for name, plan in alone.items():
        lamella.build(model, folder / name, plan, name, importance=importance)
    seconds = time.perf_counter() - start
    files = []
    for name in alone:
        lamella.export(folder / name, folder / f"{name}.gguf", name)
        files.append([folder / f"{name}.gguf"])
        shutil.rmtree(folder / name)
    return {"ladder": shared, "files": {"build_s": seconds, **_on_disk_and_cached(files)}}


def _on_disk_and_cached(models: Sequence[Sequence[Path]]) -> dict[str, int]:
    files = sorted({path for paths in models for path in paths})
    for path in files:
        _forget_pages(path)
    for paths in models:
        subprocess.run([sys.executable, "-c", _OPEN, *map(str, paths)], check=True, stderr=subprocess.DEVNULL)
    return {"disk_bytes": sum(path.stat().st_size for path in files), "cached_bytes": _cached_bytes(files)}


def _forget_pages(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _cached_bytes(files: Iterable[Path]) -> int:
    done = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", *map(str, files)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return sum(map(int, done.stdout.split()))


def _report(
    model: str,
    ladder: Ladder,
    found: Mapping[str, Sequence[float]],
    costs: Mapping[str, Mapping[str, float]],
    planned_s: float,
    n_windows: int,
) -> None:
    rows: list[dict[str, Any]] = []
    for i, step in enumerate(ladder.steps, 1):
        alone, together = found[f"alone-{i}"], found[f"step-{i}"]
        rows.append(
            {
                "bits_per_weight": step.plan.bits_per_weight,
                "bytes": step.plan.bytes.weights,
                "alone_bytes": step.alone_bytes,
                "kl_alone": alone,
                "kl": together,
                "kl_ratio": together[0] / alone[0],
                "predicted_ratio": step.loss_ratio,
            }
        )
    head = ["step", "bits/weight", "KL alone", "KL", "ratio", "predicted"]
    cells = [
        [i, r["bits_per_weight"], r["kl_alone"][0], r["kl"][0], r["kl_ratio"], r["predicted_ratio"]]
        for i, r in enumerate(rows, 1)
    ]
    table([head, *cells])
    joint_ratio = ladder.joint_bytes / sum(step.alone_bytes for step in ladder.steps)
    print(f"joint bytes {joint_ratio:.3f} of separate files; worst predicted ratio {ladder.worst_ratio:.3f}, "
          f"no ladder below {ladder.ratio_bound:.3f}; planned in {planned_s:.1f} s")  # fmt: skip
    for name, cost in costs.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in cost.items()))
    result: dict[str, Any] = {
        "model": model,
        "windows": n_windows,
        "joint_ratio": joint_ratio,
        "max_kl_ratio": max(r["kl_ratio"] for r in rows),
        "predicted_max_ratio": ladder.worst_ratio,
        "ratio_bound": ladder.ratio_bound,
        "planned_s": round(planned_s, 2),
        "steps": rows,
        "costs": costs,
    }
    record(f"store-{model}", result)


if __name__ == "__main__":
    main()
