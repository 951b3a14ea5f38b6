"""An engine over several nodes, in a process of its own: llama.cpp ends its process where a node is lost."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from lamella.batching.engine_parts import EngineParts
from lamella.batching.settings import EngineSettings, LayersAt

PROMPT = list(range(300, 316))
N_CTX, N_WARM_UP = 512, 8


def milliseconds(store: str, variant: str, places: Sequence[tuple[str, int, int]], n_tokens: int) -> list[float]:
    """Of each of some greedy tokens.

    Args:
        places: endpoint, first layer and end of each range, in order.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_compute, args=(store, variant, list(places), n_tokens, theirs))
    child.start()
    theirs.close()
    try:
        found: list[float] = ours.recv()
        return found
    except EOFError:
        raise SystemExit(f"the engine of {variant} has ended") from None
    finally:
        child.kill()
        child.join()


def _compute(store: str, variant: str, places: list[tuple[str, int, int]], n_tokens: int, pipe: Connection) -> None:
    settings = EngineSettings(
        store=store, variant=variant, n_ctx=N_CTX, n_sequences=1, n_threads=1, n_warm=1, layout="mapped",
        layers=[LayersAt(*place) for place in places],
    )  # fmt: skip
    with contextlib.closing(EngineParts.open(settings)) as parts:
        parts.context.decode(PROMPT, 0)
        times = []
        for position in range(len(PROMPT), len(PROMPT) + N_WARM_UP + n_tokens):
            start = time.perf_counter()
            parts.context.decode([int(parts.context.logits().argmax())], position)
            times.append(1e3 * (time.perf_counter() - start))
        pipe.send(times[N_WARM_UP:])
