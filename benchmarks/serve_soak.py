"""Claim: after half an hour of clients of every kind the server holds what it held at the start.

    .venv/bin/python -m benchmarks.serve_soak [--model smollm2] [--minutes 30]

Short and long requests, requests at a variant of their own, JSON schemas, clients that leave, that read slowly, that
send nonsense, that break off (``mixed_load.py``), and a switch every few seconds.  Every second the memory of the front
and of the engine is read, and what they have open.  The front keeps a quarter of an hour for the dashboard, and grows
until that is full: so long is its warm-up.  That of the engine, which fills its prompt cache, is a fifth of the time.
Shorter runs than half an hour show the front's growth beside what leaks.

Memory is flat where the 95 % interval of its slope reaches down to 0 or the growth is below 1 % an hour.  At the end,
when everybody has left, nothing may run, wait or be parked, no request may be open, and descriptors, sockets and
threads must be those of before the load.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks import clients, servers
from benchmarks.common import record, table
from benchmarks.footprints import Footprint, footprint, slope, watch
from benchmarks.mixed_load import MixedLoad, Outcomes
from benchmarks.stores import stock_store, work_folder
from lamella.dashboard.recorder import N_POINTS, TICK_SECONDS

MIXES = ("Q8_0", "Q6_K", "Q4_K_M", "Q4_0")
N_CTX, N_SEQUENCES = 1024, 8
SAMPLE_SECONDS, SWITCH_SECONDS, SETTLE_SECONDS = 1.0, 4.0, 8.0
FRONT_WARM_UP_SECONDS, MOST_FRONT_SHARE = 1.1 * N_POINTS * TICK_SECONDS, 0.55
ENGINE_SHARE = 0.2
PROMPT_CACHE = "64MiB"
"""So little that it is full when the warm-up ends; it grows to its bound, which is no leak."""
NEGLIGIBLE_SHARE_PER_HOUR = 0.01
IDLE_WITHIN_SECONDS = 30.0
COUNTED = ("descriptors", "sockets", "threads")
MEMORY = ("resident_bytes", "private_bytes")
KEPT_SAMPLES = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--work", type=Path, help="folder in which the store is kept for the next time")
    args = parser.parse_args()
    with work_folder(args.work) as folder:
        store = stock_store(args.model, MIXES, folder / "store")
        sizes = {"n_ctx": N_CTX, "n_sequences": N_SEQUENCES}
        options = ("--prompt-cache", PROMPT_CACHE)
        with servers.ours(store.path, MIXES[0], *options, log=folder / "ours.log", **sizes) as port:
            result = asyncio.run(soak(port, args.minutes * 60))
    report(args.model, args.minutes, result)


async def soak(port: int, seconds: float) -> dict[str, Any]:
    """Load, and what became of the two processes."""
    async with clients.admin(port) as client:
        status = await clients.status(client)
        pids = {"engine": int(status["engine"]["pid"])}
        pids["front"] = psutil.Process(pids["engine"]).ppid()
        model = status["engine"]["model"]
        first = MixedLoad(port, client, model, list(MIXES), seed=-1)
        await first.run(_after(SETTLE_SECONDS), SWITCH_SECONDS)  # threads and pools that come with the first requests
    before = await settled(pids)
    async with clients.admin(port) as client:
        load = MixedLoad(port, client, model, list(MIXES), seed=0)
        is_over = _after(seconds)
        series, _ = await asyncio.gather(watch(pids, is_over, SAMPLE_SECONDS), load.run(is_over, SWITCH_SECONDS))
    end_status = await idle_status(port)
    after = await settled(pids)
    return {
        **_figures(series),
        "outcomes": _outcomes(load.outcomes),
        "left": {
            "requests_open": end_status["requests_open"],
            **{key: end_status["status"][key] for key in ("n_running", "n_waiting", "n_parked")},
            "engine_restarts": end_status["engine_restarts"],
            **{
                f"{name}_{key}": getattr(after[name], key) - getattr(before[name], key)
                for name in pids
                for key in COUNTED
            },
        },
        "series": {name: [asdict(f) for f in _thinned(footprints)] for name, footprints in series.items()},
    }


def _after(seconds: float) -> Any:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


async def settled(pids: dict[str, int]) -> dict[str, Footprint]:
    """What the processes hold when nobody asks anything and the server has closed what it closes after a while."""
    await asyncio.sleep(SETTLE_SECONDS)
    return {name: footprint(pid, 0.0) for name, pid in pids.items()}


async def idle_status(port: int) -> dict[str, Any]:
    """The status once nothing runs any more, or the last one within the time that may take."""
    end = time.perf_counter() + IDLE_WITHIN_SECONDS
    async with clients.admin(port) as client:
        while True:
            status = await clients.status(client)
            busy = status["requests_open"] or status["status"]["n_running"] or status["status"]["n_waiting"]
            if not busy or time.perf_counter() > end:
                return status
            await asyncio.sleep(0.5)


# --- what came of it -------------------------------------------------------------------------------------------------


def _figures(series: dict[str, list[Footprint]]) -> dict[str, Any]:
    """Slopes of memory after warm-up, and whether all of it is flat."""
    memory: dict[str, Any] = {}
    for name, footprints in series.items():
        warm = _warm(name, footprints)
        for key in MEMORY:
            values = [float(getattr(f, key)) for f in warm]
            found, typical = slope([f.at for f in warm], values), statistics.median(values)
            memory[f"{name}_{key}"] = {
                "median": int(typical),
                "growth_per_hour": int(found.per_hour),
                "plus_minus": int(found.plus_minus),
                "is_flat": found.is_flat or found.per_hour < NEGLIGIBLE_SHARE_PER_HOUR * typical,
            }
    return {"is_flat": all(m["is_flat"] for m in memory.values()), "memory": memory}


def _warm(name: str, footprints: list[Footprint]) -> list[Footprint]:
    """Without those in which a process fills what it keeps by design."""
    seconds = footprints[-1].at
    is_front = name == "front"
    warm_up = min(FRONT_WARM_UP_SECONDS, MOST_FRONT_SHARE * seconds) if is_front else ENGINE_SHARE * seconds
    return [one for one in footprints if one.at >= warm_up]


def _outcomes(outcomes: Outcomes) -> dict[str, Any]:
    return {"good": dict(outcomes.good), "bad": dict(outcomes.bad)}


def _thinned(footprints: list[Footprint]) -> list[Footprint]:
    return footprints[:: max(1, len(footprints) // KEPT_SAMPLES)]


def report(model: str, minutes: float, result: dict[str, Any]) -> None:
    rows: list[list[object]] = [["memory", "median MiB", "growth MiB an hour", "+-", "flat"]]
    for name, m in result["memory"].items():
        rows.append([name, *(m[key] / 2**20 for key in ("median", "growth_per_hour", "plus_minus")), m["is_flat"]])
    table(rows)
    print("left:", {key: value for key, value in result["left"].items() if value} or "nothing")
    print("requests:", result["outcomes"])
    record(f"serve_soak-{model}", {"model": model, "minutes": minutes, **result})


if __name__ == "__main__":
    main()
