"""Claim: a variant is built as fast as llama-quantize makes a file, and variants that share layers much faster.

    .venv/bin/python -m benchmarks.quantize [--model qwen-0.5b] [--rounds 3]

One variant: the types of a stock Q4_K_M, ours and llama-quantize's, alternating.  Four variants: INT8 (Q8_0) with a
quarter, a half, three quarters and all of the layers at INT4 (Q4_K), as LSAQ steps down when memory shrinks; built into
one store, against four runs of llama-quantize that make the same types.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import rival
from benchmarks.common import open_model, plan_like, record, reference_model, spread, table
from lamella.core.artifacts import Plan
from lamella.core.cores import usable_cores
from lamella.llama.gguf import ModelFile
from lamella.quantize.build import build_variant
from lamella.store.store import Store

SHARES = (0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen-0.5b")
    parser.add_argument("--mix", default="Q4_K_M")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-quantize-") as folder:
        run(reference_model(args.model), args.model, args.mix, args.rounds, Path(folder))


def run(source: Path, name: str, mix: str, rounds: int, folder: Path) -> None:
    reference = open_model(source)
    rival.quantize(source, folder / "example.gguf", mix, usable_cores())  # the types; also warms the page cache
    plan = plan_like(open_model(folder / "example.gguf"), reference, mix.lower())
    one_theirs, one_ours, four_theirs, four_ours = [], [], [], []
    for _ in range(rounds):
        one_theirs.append(rival.quantize(source, folder / "out.gguf", mix, usable_cores()))
        one_ours.append(build_all(reference, {mix: plan}, folder / "one"))
        four_theirs.append(sum(rival_step(source, reference, share, folder) for share in SHARES))
        steps = {f"step-{share:g}": step_plan(reference, share, folder) for share in SHARES}
        four_ours.append(build_all(reference, steps, folder / "four"))
    ones = [o / t for o, t in zip(one_ours, one_theirs, strict=True)]
    fours = [o / t for o, t in zip(four_ours, four_theirs, strict=True)]
    table(
        [
            ["work", "llama-quantize s", "Lamella s", "ratio"],
            [f"one {mix}", statistics.median(one_theirs), statistics.median(one_ours), statistics.median(ones)],
            ["four steps", statistics.median(four_theirs), statistics.median(four_ours), statistics.median(fours)],
        ]
    )
    record(
        f"quantize-{name}",
        {
            "model": name,
            "mix": mix,
            "one_ratio": statistics.median(ones),
            "four_ratio": statistics.median(fours),
            "one": {"rival_s": spread(one_theirs), "ours_s": spread(one_ours)},
            "four": {"rival_s": spread(four_theirs), "ours_s": spread(four_ours)},
        },
    )


def build_all(reference: ModelFile, plans: dict[str, Plan], folder: Path) -> float:
    """Seconds for all plans in a new store."""
    start = time.perf_counter()
    store = Store.create(folder, reference.spec.identity)
    for name, plan in plans.items():
        build_variant(reference, plan, store, name)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return seconds


def rival_step(source: Path, reference: ModelFile, share: float, folder: Path) -> float:
    """Seconds of llama-quantize for one step: Q8_0, with the first layers forced to Q4_K."""
    n = round(share * reference.spec.n_layers)
    layers = "|".join(str(i) for i in range(n))
    forced = ["--tensor-type", rf"blk\.({layers})\.(attn|ffn).*weight=q4_k"]
    return rival.quantize(source, folder / f"step-{share:g}.gguf", "Q8_0", usable_cores(), *forced)


def step_plan(reference: ModelFile, share: float, folder: Path) -> Plan:
    """The types that the rival's step got (a row length that K-quants do not fit falls back there)."""
    return plan_like(open_model(folder / f"step-{share:g}.gguf"), reference, f"step-{share:g}")


if __name__ == "__main__":
    main()
