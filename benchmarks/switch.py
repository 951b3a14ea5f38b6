"""Claim: a running model changes its precision between two tokens, where everybody else loads another model.

    .venv/bin/python -m benchmarks.switch [--model qwen-1.5b] [--rounds 5] [--device CUDA0]

Q8_0 <-> Q4_K_M (the stock mix's own types) in the middle of a generation after a prompt of 512 tokens, warm pages.
Reported: the time of the switch itself; the token at the switch (switch included) against the median of the ten tokens
before and the ten after; and the same change made by closing the model, loading the other file with the same library
(page cache warm, default options), and computing the prompt again.

On a device both ways use its memory: each shard in a buffer of its own here, everything uploaded anew there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import rival
from benchmarks.common import open_model, plan_like, record, reference_model, spread, table
from lamella.core.cores import usable_cores
from lamella.llama import rpc
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import ALL_LAYERS, Model
from lamella.llama.sampling import SamplingOptions
from lamella.quantize.build import build_variant
from lamella.run.engine import Engine, EngineOptions
from lamella.run.kernel_table import KernelTable
from lamella.run.layouts import LayoutPolicy
from lamella.store.store import Store

PROMPT_TOKENS, BEFORE, AFTER = 512, 20, 20
NEIGHBOURS = 10
CONTEXT = ContextOptions(n_ctx=1024)
GREEDY = SamplingOptions(temperature=0)
PAIR = ("Q8_0", "Q4_K_M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen-1.5b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", help="as 'lamella devices' names it; default: the CPU")
    parser.add_argument("--rpc", help="address of an rpc-server of llama.cpp on this machine, which has the device")
    args = parser.parse_args()
    if args.rpc:
        rpc.connect(args.rpc)
    with tempfile.TemporaryDirectory(prefix="lamella-switch-") as folder:
        run(reference_model(args.model), args.model, args.rounds, Path(folder), args.device)


def run(source: Path, name: str, rounds: int, folder: Path, device: str | None) -> None:
    files = {mix: folder / f"{mix}.gguf" for mix in PAIR}
    reference = open_model(source)
    store = Store.create(folder / "store", reference.spec.identity)
    for mix, file in files.items():
        rival.quantize(source, file, mix, usable_cores())
        build_variant(reference, plan_like(open_model(file), reference, mix.lower()), store, mix)
    tokens = prompt_tokens(files[PAIR[0]])

    kernels = KernelTable(None, usable_cores())
    results: dict[str, dict[str, list[float]]] = {}
    reloads: list[float] = []
    layouts: tuple[LayoutPolicy, ...] = ("auto", "mapped")
    for policy in layouts[:1] if device else layouts:
        results[policy] = live_switches(store, tokens, rounds, EngineOptions(CONTEXT, policy, device=device), kernels)
    for _ in range(rounds):
        reloads += [reload_ms(files[mix], tokens, on_device=device is not None) for mix in reversed(PAIR)]

    auto = results["auto"]
    rows: list[list[object]] = [["layout", "switch ms", "token at it ms", "neighbours ms", "stall ratio", "prepare ms"]]
    for layout, found in results.items():
        rows.append([layout, *(statistics.median(found[k]) for k in COLUMNS)])
    table(rows)
    reload = statistics.median(reloads)
    switched = statistics.median(auto["token_ms"])
    print(f"close, load, compute the prompt again: {reload:.0f} ms until the next token; switched: {switched:.1f} ms")
    record(
        f"switch_{device}" if device else "switch",
        {
            "model": name,
            "device": device or "CPU",
            "switch_ms": statistics.median(auto["switch_ms"]),
            "stall_ratio": statistics.median(auto["stall_ratio"]),
            "reload_ms": reload,
            "speedup": reload / switched,
            "worst_stall_ratio": max(auto["stall_ratio"]),
            "layouts": {k: {c: spread(v) for c, v in found.items()} for k, found in results.items()},
            "reload": spread(reloads),
        },
    )


COLUMNS = ("switch_ms", "token_ms", "neighbours_ms", "stall_ratio", "prepare_ms")


def live_switches(
    store: Store, tokens: list[int], rounds: int, options: EngineOptions, kernels: KernelTable
) -> dict[str, list[float]]:
    """Both directions, ``rounds`` times each."""
    found: dict[str, list[float]] = {c: [] for c in COLUMNS}
    with Engine.open(store, PAIR[0], options, kernels) as engine:
        found["prepare_ms"].append(engine.prepare(PAIR[1]).result().seconds * 1e3)
        one_switch(engine, tokens, PAIR[1])  # both warm from here on
        for _ in range(rounds):
            for target in PAIR:
                for key, value in one_switch(engine, tokens, target).items():
                    found[key].append(value)
    return found


def one_switch(engine: Engine, tokens: list[int], target: str) -> dict[str, float]:
    generation = engine.generate(tokens, max_tokens=BEFORE + 1 + AFTER, sampling=GREEDY)
    times = [next(generation).seconds for _ in range(BEFORE)]
    start = time.perf_counter()
    report = engine.switch(target)
    next(generation)
    at = time.perf_counter() - start
    after = [token.seconds for token in generation]
    neighbours = statistics.median(times[-NEIGHBOURS:] + after[:NEIGHBOURS])
    return {
        "switch_ms": report.switch_seconds * 1e3,
        "token_ms": at * 1e3,
        "neighbours_ms": neighbours * 1e3,
        "stall_ratio": at / neighbours,
    }


def reload_ms(file: Path, tokens: list[int], *, on_device: bool) -> float:
    """Load a model, compute the prompt, and one token, as one would without a live switch."""
    start = time.perf_counter()
    with (
        Model.load([file], repack=True, n_gpu_layers=ALL_LAYERS if on_device else 0) as model,
        Context(model, CONTEXT) as context,
    ):
        context.decode(tokens, 0)
        context.decode([int(context.logits().argmax())], len(tokens))
        return (time.perf_counter() - start) * 1e3


def prompt_tokens(file: Path) -> list[int]:
    """Some 512 tokens of text that the model does not end at once."""
    text = " ".join(f"Chapter {i}: the history of the Roman Empire began when" for i in range(200))
    with Model.load([file]) as model:
        return model.vocabulary.tokenize(text)[:PROMPT_TOKENS]


if __name__ == "__main__":
    main()
