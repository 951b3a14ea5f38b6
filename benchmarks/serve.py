"""Claim: the server is as fast as llama-server on the same file, and its streams share the machine at least as well.

    .venv/bin/python -m benchmarks.serve [--model smollm2] [--mix Q4_K_M] [--rounds 8]

Both servers are up all the time, with the same file, threads, sequences and KV cells, and answer in turn; each goes
first every other time.  The loads that take seconds are measured several times a round (``TIMES``), because a shared
machine's speed changes within seconds; a ratio is the median of those of two neighbours in time.  Greedy, no early end.
Five loads:

* single: one stream of 128 tokens; tokens/s after the first token.
* concurrent: 8 streams of 64 tokens at once; all tokens over the time from the first request to the last token.
* seven: the same with 7 streams, a number that does not divide evenly among the kernels' rows.
* ttft: requests at 4 a second (one Poisson trace for both), prompts of about 60 tokens, 16 tokens each; median time
  to the first token.
* prefix: as ttft, with a system prompt of about 1,000 tokens before each question; the first request, which reads it,
  is sent before and not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks import rival, servers
from benchmarks.common import DATA, open_model, plan_like, record, reference_model, spread, table
from benchmarks.servers import Answer, checked
from lamella.core.cores import usable_cores
from lamella.quantize.build import build_variant
from lamella.store.store import Store

N_CTX, N_SEQUENCES = 2048, 8
RATE = 4.0
N_ARRIVALS = 24
LOADS = ("single", "concurrent", "seven", "ttft", "prefix")
TIMES = {"single": 5, "concurrent": 3, "seven": 3, "ttft": 1, "prefix": 1}
IS_TIME = {"single": False, "concurrent": False, "seven": False, "ttft": True, "prefix": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--mix", default="Q4_K_M")
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-serve-") as name:
        folder = Path(name)
        file = stored_mix(args.model, args.mix, folder)
        sizes = {"n_ctx": N_CTX, "n_sequences": N_SEQUENCES}
        with (
            servers.ours(folder / "store", args.mix, log=folder / "ours.log", **sizes) as our_port,
            servers.theirs(file, log=folder / "theirs.log", **sizes) as their_port,
        ):
            ours, theirs = alternate(our_port, their_port, args.rounds)
    report(args.model, args.mix, ours, theirs)


def stored_mix(model: str, mix: str, folder: Path) -> Path:
    """A stock mix as a variant of a store; returns the first of its files, which llama-server opens as it is."""
    reference = open_model(reference_model(model))
    store = Store.create(folder / "store", reference.spec.identity)
    rival.quantize(reference_model(model), folder / "mix.gguf", mix, usable_cores())
    build_variant(reference, plan_like(open_model(folder / "mix.gguf"), reference, mix.lower()), store, mix)
    (folder / "mix.gguf").unlink()
    return store.first_link(mix)


def alternate(our_port: int, their_port: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The figure of each load and round, of both servers."""
    text = (DATA / "wikitext2" / "wiki.test.raw").read_text()
    found: dict[int, dict[str, list[float]]] = {p: {load: [] for load in LOADS} for p in (our_port, their_port)}
    for port in (our_port, their_port):  # warm up: pages, buffers, thread pools
        asyncio.run(concurrent(port, Texts(text, "warm")))
    for i in range(rounds):
        for load in LOADS:
            measure: Callable[[int, Texts], Coroutine[Any, Any, float]] = globals()[load]
            for k in range(TIMES[load]):
                for port in (our_port, their_port) if (i + k) % 2 else (their_port, our_port):
                    found[port][load].append(asyncio.run(measure(port, Texts(text, f"{load} {i} {k}"))))
    return found[our_port], found[their_port]


class Texts:
    """Prompts of a load and round: equal for both servers, new each time, so that nothing kept is of help."""

    def __init__(self, text: str, name: str) -> None:
        self._text, self._random = text, random.Random(name)

    def prompt(self, n_characters: int) -> str:
        start = self._random.randrange(len(self._text) - n_characters)
        return self._text[start : start + n_characters]

    def arrivals(self, n: int) -> list[float]:
        """Seconds, of a Poisson process."""
        times, now = [], 0.0
        for _ in range(n):
            times.append(now)
            now += self._random.expovariate(RATE)
        return times


async def single(port: int, texts: Texts) -> float:
    (answer,) = checked([await servers.complete(port, texts.prompt(120), 128)])
    return answer.tokens_per_second


async def concurrent(port: int, texts: Texts) -> float:
    return await _together(port, texts, 8)


async def seven(port: int, texts: Texts) -> float:
    return await _together(port, texts, 7)


async def _together(port: int, texts: Texts, n_streams: int) -> float:
    """Tokens a second of streams that begin at once."""
    answers = checked(await servers.all_at_once(port, [texts.prompt(120) for _ in range(n_streams)], 64))
    seconds = max(a.times[-1] for a in answers) - min(a.sent for a in answers)
    return sum(a.n_tokens for a in answers) / seconds


async def ttft(port: int, texts: Texts) -> float:
    prompts = [texts.prompt(240) for _ in range(N_ARRIVALS)]
    return _median_first_token(await servers.by_arrival(port, prompts, texts.arrivals(N_ARRIVALS), 16))


async def prefix(port: int, texts: Texts) -> float:
    system = texts.prompt(4000)
    checked([await servers.complete(port, f"{system}\n\nQ: what?", 4)])
    prompts = [f"{system}\n\nQ: {texts.prompt(80)}" for _ in range(N_ARRIVALS)]
    return _median_first_token(await servers.by_arrival(port, prompts, texts.arrivals(N_ARRIVALS), 16))


def _median_first_token(answers: list[Answer]) -> float:
    return statistics.median(a.first_token_seconds for a in checked(answers))


def report(model: str, mix: str, ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> None:
    rows: list[list[object]] = [["load", "llama-server", "lamella", "ratio", "wanted"]]
    wanted = {"single": ">= 0.97", "concurrent": ">= 1.0", "seven": ">= 1.0", "ttft": "<= 1.05", "prefix": "<= 1.1"}
    ratios = {}
    for load in LOADS:
        median = statistics.median(ours[load]), statistics.median(theirs[load])
        ratios[load] = round(statistics.median(a / b for a, b in zip(ours[load], theirs[load], strict=True)), 4)
        unit = "s" if IS_TIME[load] else "tok/s"
        rows.append([f"{load} ({unit})", median[1], median[0], ratios[load], wanted[load]])
    table(rows)
    loads = {load: {"ours": spread(ours[load]), "rival": spread(theirs[load])} for load in LOADS}
    record(
        f"serve-{model}",
        {"model": model, "mix": mix, **{f"{load}_ratio": ratios[load] for load in LOADS}, "loads": loads},
    )


if __name__ == "__main__":
    main()
