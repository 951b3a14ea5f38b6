"""Claim: what the simulator says of a policy is what the live server then does on the same trace.

    .venv/bin/python -m benchmarks.simulated [--model smollm2] [--minutes 3] [--ways highest,predictive]

The variants are profiled, a bursty trace is sent to a live server once for each way, and replayed in virtual time
against the profile of minutes before; so that the host's speed is the same for both, all is measured in one run, and
the steps of the highest variant once more at the end (``drift``).  Reported for each way: requests that met the promise
and mean KL, live and simulated; and by how much times to the first token and per token are off, over requests.

Store and quality are kept in ``--work``; speeds never are.  Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import record, table
from benchmarks.qos import KL_TEXT, N_CTX, N_SEQUENCES, measure, token_prompts
from benchmarks.qos_load import find_contest
from benchmarks.qos_virtual import Bench, policy_of, replayed, share_off
from benchmarks.stores import stock_store, work_folder
from lamella import api
from lamella.api.profiles import write_profile
from lamella.batching.settings import EngineSettings
from lamella.evaluating.evaluation import Exams
from lamella.qos.policies.setting import Setting
from lamella.qos.profiles.documents import Profile, Quality
from lamella.qos.profiling.points import Points
from lamella.qos.simulator.outcome import Served, mean_kl
from lamella.qos.simulator.outcome import attainment as attainment_of
from lamella.qos.watching import p95
from lamella.store.store import Store

MIXES = ("Q8_0", "planned-6.7", "planned-6.0", "Q4_0")
WAYS = ("highest", "predictive")
POINTS = Points(
    prompts=(16, 64, 256),
    sequences=(1, 2, 3, 4, 5, 6, 7, 8),
    deep=256,
    mixed=((1, 64), (4, 64), (4, 256)),
    n_steps=12,
    repeats=1,
)
DRIFT_POINTS = Points(prompts=(16,), sequences=(1, 8), deep=64, mixed=(), n_steps=12, repeats=1)
MOST_ATTAINMENT_OFF, MOST_KL_OFF = 0.05, 0.10


def main() -> None:
    args = _arguments()
    with work_folder(args.work) as folder:
        store = stock_store(args.model, args.mixes.split(","), folder / f"store-{args.model}")
        qualities = measured_qualities(store, folder / f"quality-{args.model}.json", folder)
        path = folder / f"profile-{args.model}.json"
        profile = profiled(store, path, folder, POINTS, qualities)
        contest = find_contest(profile, args.minutes, args.seed)
        setting = Setting.of(profile, contest.objectives)
        bench = Bench(store, folder, path, setting, contest, token_prompts(store, contest, args.seed))
        live = {name: asyncio.run(measure(name, bench, {})).served for name in args.ways.split(",")}
        drift = drifted(store, folder, profile, contest.highest)
    report(args.model, bench, live, drift)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="smollm2 or qwen-0.5b")
    parser.add_argument("--minutes", type=float, default=3, help="of the trace; each way takes so long")
    parser.add_argument("--ways", default=",".join(WAYS), help="of those that benchmarks.qos has")
    parser.add_argument("--mixes", default=",".join(MIXES), help="variants: types of llama-quantize, or planned-BITS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder in which store and quality are kept for the next time")
    return parser.parse_args()


# --- before ----------------------------------------------------------------------------------------------------------


def measured_qualities(store: Store, path: Path, cache_folder: Path) -> dict[str, Quality]:
    """Divergence of each variant; what the file has stays."""
    known = api.read_profile(path) if path.exists() else None
    if known is None or {v.name for v in known.variants} < {v.name for v in store.variants()}:
        exams = Exams(text=KL_TEXT, n_windows=4)
        known, _ = api.profile(_settings(store), out=path, cache_folder=cache_folder, exams=exams, points=DRIFT_POINTS)
    return {variant.name: variant.quality for variant in known.variants}


def profiled(store: Store, path: Path, cache_folder: Path, points: Points, qualities: dict[str, Quality]) -> Profile:
    """The variants' speeds now, with the quality that is known, in a file."""
    path.unlink(missing_ok=True)
    found, _ = api.profile(_settings(store), list(qualities), out=path, cache_folder=cache_folder, points=points)
    found = replace(found, variants=tuple(replace(v, quality=qualities[v.name]) for v in found.variants))
    write_profile(found, path)
    return found


def _settings(store: Store) -> EngineSettings:
    return EngineSettings(store=str(store.path), n_ctx=N_CTX, n_sequences=N_SEQUENCES)


def drifted(store: Store, folder: Path, before: Profile, variant: str) -> dict[str, float]:
    """By how much steps take longer now than in the profile, by the streams that write."""
    path = folder / "drift.json"
    path.unlink(missing_ok=True)
    after, _ = api.profile(_settings(store), [variant], out=path, cache_folder=folder, points=DRIFT_POINTS)
    (now,) = after.variants
    was = next(v for v in before.variants if v.name == variant)
    then = {point.n_sequences: point.seconds for point in was.steps if point.depth == DRIFT_POINTS.shallow}
    shallow = [p for p in now.steps if p.depth == DRIFT_POINTS.shallow and p.n_sequences in then]
    return {str(p.n_sequences): round(p.seconds / then[p.n_sequences], 3) for p in shallow}


# --- what came of it -------------------------------------------------------------------------------------------------


def report(model: str, bench: Bench, live: dict[str, tuple[Served, ...]], drift: dict[str, float]) -> None:
    contest = bench.contest
    found = {name: compared(name, bench, served) for name, served in live.items()}
    rows: list[Sequence[object]] = [
        ["way", "requests", "met live", "simulated", "KL live", "simulated", "token off", "first off"]
    ]
    rows += [
        [name, f["requests"], *(f"{f[side]['attainment']:.1%}" for side in ("live", "simulated")),
         f["live"]["kl"], f["simulated"]["kl"], f"{f['tpot_off']:+.1%}", f"{f['ttft_off']:+.1%}"]
        for name, f in found.items()
    ]  # fmt: skip
    table(rows)
    print(f"promise: {contest.token_ms:.0f} ms a token; {contest.trace.name}; steps at the end against before: {drift}")
    result = {
        "model": model,
        "trace": contest.trace.name,
        "promised_token_ms": round(contest.token_ms, 2),
        "attainment_off": max(f["attainment_off"] for f in found.values()),
        "kl_off": max(f["kl_off"] for f in found.values()),
        "attainment_allowed": MOST_ATTAINMENT_OFF,
        "kl_allowed": MOST_KL_OFF,
        "drift": drift,
        "ways": found,
    }
    record(f"simulated-{model}", result)


def compared(name: str, bench: Bench, live: tuple[Served, ...]) -> dict[str, Any]:
    """One way, both times, and the differences: simulated against live."""
    simulated = replayed(bench, policy_of(name, bench, {})).served
    sides = {"live": _figures(bench, live), "simulated": _figures(bench, simulated)}
    here, there = sides["live"], sides["simulated"]
    pairs = [(a, b) for a, b in zip(live, simulated, strict=True) if not a.failure and not b.failure]
    return {
        "requests": len(live),
        **sides,
        "attainment_off": round(abs(there["attainment"] - here["attainment"]), 4),
        "kl_off": share_off(there["kl"], here["kl"]),
        "tpot_off": _off([(a.tpot_seconds, b.tpot_seconds) for a, b in pairs if a.tpot_seconds]),
        "ttft_off": _off([(a.ttft_seconds, b.ttft_seconds) for a, b in pairs]),
    }


def _figures(bench: Bench, served: Sequence[Served]) -> dict[str, Any]:
    kl = mean_kl(served, {rung.name: rung.kl for rung in bench.setting.rungs})
    good = [one for one in served if not one.failure]
    return {
        "attainment": round(attainment_of(served, bench.contest.objectives), 4),
        "kl": None if kl is None else round(kl, 5),
        "failed": len(served) - len(good),
        "tpot_p95_ms": round(1000 * (p95(one.tpot_seconds for one in good) or 0.0), 1),
        "tpot_p50_ms": round(1000 * statistics.median(one.tpot_seconds for one in good), 1),
        "ttft_p95_ms": round(1000 * (p95(one.ttft_seconds for one in good) or 0.0), 1),
        "ttft_p50_ms": round(1000 * statistics.median(one.ttft_seconds for one in good), 1),
    }


def _off(pairs: Sequence[tuple[float, float]]) -> float:
    """By how much the second is longer than the first, in the median over requests."""
    return round(statistics.median(there / here for here, there in pairs) - 1, 4)


if __name__ == "__main__":
    main()
