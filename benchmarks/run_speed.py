"""Claim: the engine costs nothing: one sequence runs as fast as in llama-bench on the same file.

    .venv/bin/python -m benchmarks.run_speed [--model smollm2] [--mixes Q4_0,Q8_0,Q4_K_M] [--rounds 20]

llama-bench (its defaults: repacked weights) and ``Engine`` (layout auto) alternate on the shards of the same variant,
each going first every other round; 64 generated tokens, and prompts of 256.  Ratios are of the medians.  Sampling and
text are counted for the engine, llama-bench has neither.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks import rival
from benchmarks.common import open_model, plan_like, record, reference_model, spread, table
from lamella.core.cores import usable_cores
from lamella.llama.context import ContextOptions
from lamella.llama.sampling import SamplingOptions
from lamella.quantize.build import build_variant
from lamella.run.engine import Engine, EngineOptions
from lamella.run.kernel_table import KernelTable
from lamella.store.store import Store

N_GENERATE, N_PROMPT = 64, 256  # short rounds, many of them: the speed of a shared machine drifts within seconds
OPTIONS = EngineOptions(ContextOptions(n_ctx=1024), n_warm=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--mixes", default="Q4_0,Q8_0,Q4_K_M")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-speed-") as folder:
        run(reference_model(args.model), args.model, args.mixes.split(","), args.rounds, Path(folder))


def run(source: Path, name: str, mixes: list[str], rounds: int, folder: Path) -> None:
    reference = open_model(source)
    store = Store.create(folder / "store", reference.spec.identity)
    kernels = KernelTable(None, usable_cores())
    rows: list[list[object]] = [
        ["mix", "llama-bench tok/s", "Engine tok/s", "ratio", "prompt tok/s", "Engine", "ratio"]
    ]
    by_mix: dict[str, dict[str, object]] = {}
    found: dict[str, dict[str, float]] = {}

    def least(phase: str) -> float:
        return min(ratios[phase] for ratios in found.values())

    for mix in mixes:
        file = folder / f"{mix}.gguf"
        rival.quantize(source, file, mix, usable_cores())
        build_variant(reference, plan_like(open_model(file), reference, mix.lower()), store, mix)
        file.unlink()
        theirs, ours = compare(store, mix, rounds, kernels)
        ratios = {p: statistics.median(ours[p]) / statistics.median(theirs[p]) for p in ("generate", "prompt")}
        row: list[object] = [mix]
        for phase in ("generate", "prompt"):
            row += [statistics.median(theirs[phase]), statistics.median(ours[phase]), ratios[phase]]
        rows.append(row)
        found[mix] = ratios
        by_mix[mix] = {
            phase: {"rival": spread(theirs[phase]), "ours": spread(ours[phase]), "ratio": ratios[phase]}
            for phase in ("generate", "prompt")
        }
    table(rows)
    record(
        f"run_speed-{name}",
        {"model": name, "ratio": least("generate"), "prompt_ratio": least("prompt"), "mixes": by_mix},
    )


def compare(
    store: Store, variant: str, rounds: int, kernels: KernelTable
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Tokens per second by phase: of llama-bench, and of the engine; alternating."""
    theirs: dict[str, list[float]] = {"generate": [], "prompt": []}
    ours: dict[str, list[float]] = {"generate": [], "prompt": []}
    file = store.first_link(variant)
    with Engine.open(store, variant, OPTIONS, kernels) as engine:
        engine_round(engine)  # warm up, as llama-bench does
        for i in range(rounds):
            mine = engine_round(engine) if i % 2 else {}
            found = rival.bench(file, n_prompt=N_PROMPT, n_generate=N_GENERATE, n_threads=usable_cores())
            mine = mine or engine_round(engine)
            for phase in ("generate", "prompt"):
                theirs[phase].append(found[phase])
                ours[phase].append(mine[phase])
    return theirs, ours


def engine_round(engine: Engine) -> dict[str, float]:
    """One generation from a short prompt, and one long prompt; neither finds anything in the cache."""
    sampling = SamplingOptions(temperature=0)
    engine.generate([7], max_tokens=1, sampling=sampling).text()
    writing = engine.generate("Chapter 1: the history of", max_tokens=N_GENERATE + 1, sampling=sampling)
    writing.text()
    if writing.stats.n_generated <= N_GENERATE:
        raise SystemExit(f"the model ended after {writing.stats.n_generated} tokens; the speed would not be comparable")
    reading = engine.generate([200 + i for i in range(N_PROMPT)], max_tokens=1, sampling=sampling)
    reading.text()
    return {
        "generate": writing.stats.tokens_per_second,
        "prompt": reading.stats.prompt_tokens_per_second,
    }


if __name__ == "__main__":
    main()
