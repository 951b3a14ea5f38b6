"""Claim: requests at two precisions run side by side as if each had a server of its own, in the memory of the union.

    .venv/bin/python -m benchmarks.serve_classes [--model smollm2] [--rounds 5]

Two classes of greedy requests, eight of each, one at Q8_0 and one at Q4_K_M (no shard in common but the metadata: the
union is the sum), once with each layout of weights, and with ``--reproducible``, where no answer may differ.

* Answers: those of the sixteen requests at once against those of a server that has the one variant alone and gets the
  one class.  Beside it how many answers of that server differ between two runs, and between a run of eight at once and
  one after another: what rounding alone does (``sameness.py``).
* Throughput: all sixteen at once against one class after the other, on the same server, in turns.
* Memory of the engine process (Pss), against the server with one variant: what is more may be the other variant's
  shards and 5 % of the union.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import clients, sameness, servers
from benchmarks.clients import Prompts, Stream, write_all
from benchmarks.common import record, spread, table
from benchmarks.stores import stock_store, work_folder
from lamella.store.store import Store

MIXES = ("Q8_0", "Q4_K_M")
LAYOUTS = {"auto": ("--layout", "auto"), "mapped": ("--layout", "mapped"), "reproducible": ("--reproducible",)}
"""Of weights, and the one in which no rounding depends on what is computed beside a request."""
N_CTX, N_EACH, N_TOKENS, PROMPT_CHARACTERS = 512, 8, 96, 120
ALLOWED_SHARE_OF_UNION = 1.05


@dataclass(frozen=True, slots=True)
class Pinned:
    """A server with one variant: its answers, with every prompt of its class at once, that again, and one by one."""

    answers: list[Stream]
    again: list[Stream]
    one_by_one: list[Stream]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Mixed:
    """A server with two variants: answers by variant, tokens/s of each round, and memory."""

    answers: dict[str, list[Stream]]
    together: list[float]
    one_class_after_the_other: list[float]
    memory_bytes: int
    flip_share: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5, help="of measuring throughput")
    parser.add_argument("--batches", type=int, default=2, help="of eight answers a class that are compared")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--work", type=Path, help="folder in which the store is kept for the next time")
    args = parser.parse_args()
    with work_folder(args.work) as folder:
        store = stock_store(args.model, MIXES, folder / "store")
        found = {}
        for layout in args.layouts.split(","):
            pinned = {mix: asyncio.run(measure_pinned(store, mix, layout, args.batches)) for mix in MIXES}
            mixed = asyncio.run(measure_mixed(store, layout, args.batches, args.rounds))
            found[layout] = figures(store, pinned, mixed)
    report(args.model, found)


def class_prompts(mix: str, batch: int) -> list[str]:
    return Prompts(1000 * MIXES.index(mix) + batch).several(N_EACH, PROMPT_CHARACTERS)


# --- servers ---------------------------------------------------------------------------------------------------------


async def measure_pinned(store: Store, mix: str, layout: str, n_batches: int) -> Pinned:
    with _server(store, mix, layout) as port:
        batches = [class_prompts(mix, i) for i in range(n_batches)]
        answers = [s for b in batches for s in await write_all(port, b, N_TOKENS, **sameness.FIELDS)]
        again = [s for b in batches for s in await write_all(port, b, N_TOKENS, **sameness.FIELDS)]
        alone = [s for b in batches for p in b for s in await write_all(port, [p], N_TOKENS, **sameness.FIELDS)]
        async with clients.admin(port) as client:
            return Pinned(answers, again, alone, await engine_memory(client))


async def measure_mixed(store: Store, layout: str, n_batches: int, rounds: int) -> Mixed:
    with _server(store, MIXES[0], layout) as port:
        async with clients.admin(port) as client:
            model = (await client.get("/v1/models")).json()["data"][0]["id"]
            answers: dict[str, list[Stream]] = {mix: [] for mix in MIXES}
            for i in range(n_batches):
                requests = {mix: class_prompts(mix, i) for mix in MIXES}
                for mix, streams in (await _side_by_side(port, model, requests, **sameness.FIELDS)).items():
                    answers[mix] += streams
            before, start = await clients.status(client), time.perf_counter()
            together, apart = await _throughputs(port, model, rounds)
            after, seconds = await clients.status(client), time.perf_counter() - start
            flips = after["status"]["flip_seconds"] - before["status"]["flip_seconds"]
            return Mixed(answers, together, apart, await engine_memory(client), flips / seconds)


async def _throughputs(port: int, model: str, rounds: int) -> tuple[list[float], list[float]]:
    together: list[float] = []
    apart: list[float] = []
    for i in range(rounds):
        requests = {mix: class_prompts(mix, 100 + i) for mix in MIXES}
        for is_together in (True, False) if i % 2 else (False, True):
            start = time.perf_counter()
            if is_together:
                await _side_by_side(port, model, requests)
            else:
                for mix, prompts in requests.items():
                    await _side_by_side(port, model, {mix: prompts})
            rate = len(MIXES) * N_EACH * N_TOKENS / (time.perf_counter() - start)
            (together if is_together else apart).append(rate)
    return together, apart


async def _side_by_side(
    port: int, model: str, requests: dict[str, list[str]], **fields: Any
) -> dict[str, list[Stream]]:
    """All of them at once, each at its variant."""
    streams = {
        mix: [Stream(port, p, N_TOKENS, model=f"{model}@{mix}", **fields) for p in prompts]
        for mix, prompts in requests.items()
    }
    flat = [stream for several in streams.values() for stream in several]
    clients.succeeded(await asyncio.gather(*(stream.run() for stream in flat)))
    return streams


def _server(store: Store, mix: str, layout: str) -> Any:
    log = store.path.parent / "server.log"
    sizes = {"n_ctx": N_CTX, "n_sequences": len(MIXES) * N_EACH}
    # The memory of weights is asked for, and prompts come again: a prompt cache would add to one and spare the other.
    return servers.ours(store.path, mix, *LAYOUTS[layout], "--prompt-cache", 0, log=log, **sizes)


async def engine_memory(client: Any) -> int:
    """Resident bytes of the engine process; pages that others map too count in part (Pss)."""
    pid = (await clients.status(client))["engine"]["pid"]
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/{pid}/smaps_rollup has no Pss")


# --- what came of it -------------------------------------------------------------------------------------------------


def figures(store: Store, pinned: dict[str, Pinned], mixed: Mixed) -> dict[str, Any]:
    """Of one layout."""
    merged, compare = sameness.merged, sameness.compare
    together, apart = statistics.median(mixed.together), statistics.median(mixed.one_class_after_the_other)
    return {
        "answers": merged([compare(pinned[mix].answers, mixed.answers[mix]) for mix in MIXES]),
        "control_again": merged([compare(p.answers, p.again) for p in pinned.values()]),
        "control_one_by_one": merged([compare(p.answers, p.one_by_one) for p in pinned.values()]),
        "throughput_ratio": round(together / apart, 4),
        "together_tokens_per_second": spread(mixed.together),
        "apart_tokens_per_second": spread(mixed.one_class_after_the_other),
        "flip_share": round(mixed.flip_share, 4),
        **_memory(store, {mix: p.memory_bytes for mix, p in pinned.items()}, mixed.memory_bytes),
    }


def _memory(store: Store, alone: dict[str, int], both: int) -> dict[str, Any]:
    """``memory_ratio`` is what weights take of the server with both, over the union of the shards.

    What is not weights is taken from the server with the first variant: its memory without that variant's shards.
    """
    shards = {v.name: {s.id: s.n_bytes for s in v.shards} for v in store.readable_variants()[0]}
    union = sum(_union(shards[mix] for mix in MIXES).values())
    rest = alone[MIXES[0]] - sum(shards[MIXES[0]].values())
    return {
        "memory_ratio": round((both - rest) / union, 4),
        "memory_bytes": {**alone, "both": both},
        "shard_bytes": {**{mix: sum(shards[mix].values()) for mix in MIXES}, "union": union},
    }


def _union(sets: Any) -> dict[Any, int]:
    return {key: n_bytes for several in sets for key, n_bytes in several.items()}


def report(model: str, found: dict[str, dict[str, Any]]) -> None:
    rows: list[Sequence[object]] = [
        ["layout", "answers", "differ", "near-ties", "differ again", "differ one by one", "throughput", "memory/union"]
    ]
    for layout, f in found.items():
        answers = f["answers"]
        rows.append(
            [layout, answers["answers"], answers["differing"], answers["near_ties"], f["control_again"]["differing"],
             f["control_one_by_one"]["differing"], f["throughput_ratio"], f["memory_ratio"]]
        )  # fmt: skip
    table(rows)
    print(f"wanted: throughput at least 0.9, memory at most {ALLOWED_SHARE_OF_UNION} of the union")
    first = next(iter(found.values()))
    record(
        f"serve_classes-{model}",
        {
            "model": model,
            "mixes": MIXES,
            "differing": first["answers"]["differing"],
            "near_ties": first["answers"]["near_ties"],
            "differing_reproducible": found.get("reproducible", {}).get("answers", {}).get("differing"),
            "throughput_ratio": first["throughput_ratio"],
            "memory_ratio": first["memory_ratio"],
            "layouts": found,
        },
    )


if __name__ == "__main__":
    main()
