"""Claim: under loads of many kinds ``predictive`` keeps a promise at little divergence, near to who knows the trace.

    .venv/bin/python -m benchmarks.qos_loads [--model smollm2] [--seeds 3] [--minutes 10] [--work FOLDER]

``benchmarks.qos`` sends one trace to a live server; this replays other kinds and seeds in virtual time, against the
profile that it kept in ``--work``, or one that is measured first.  Each load is found as that one is (``qos_load``),
and what is promised is what the highest variant breaks for half of the requests.  Each is replayed on a machine as in
the profile and on one that is a little slower and wavers; ``oracle`` is planned for the first and knows which
requests to give up, so it is asked there only.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import record, table
from benchmarks.qos import MIXES, profiled
from benchmarks.qos_load import QUIET_SHARE, Contest, Make, bursty, find_contest, restated, talks
from benchmarks.stores import stock_store, work_folder
from lamella.qos.policies.decision import Policy
from lamella.qos.policies.named import named_policy
from lamella.qos.policies.setting import Setting
from lamella.qos.policies.static import Static
from lamella.qos.profiles.documents import Profile
from lamella.qos.simulator.oracle import plan_oracle
from lamella.qos.simulator.outcome import Outcome, attainment
from lamella.qos.simulator.replay import ReplayOptions, replay
from lamella.qos.traces.arrivals import Trace
from lamella.qos.traces.generators import bursts, day, poisson

PERIOD_SECONDS, SWING = 300.0, 0.8
"""Of a day that is pressed into less time."""
SLOWER, SCATTER = 1.05, 0.05
"""What the machine was like beside its profile, in the live runs (docs/qos.md)."""


def main() -> None:
    args = _arguments()
    with work_folder(args.work) as folder:
        store = stock_store(args.model, args.mixes.split(","), folder / f"store-{args.model}")
        profile = profiled(store, folder / f"profile-{args.model}.json", folder, again=False)
    found = {name: _means(profile, make, args.minutes, args.seeds) for name, make in LOADS.items()}
    report(args, found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="smollm2 or qwen-0.5b")
    parser.add_argument("--mixes", default=",".join(MIXES), help="variants: types of llama-quantize, or planned-BITS")
    parser.add_argument("--seeds", type=int, default=3, help="so many traces of each kind")
    parser.add_argument("--minutes", type=float, default=10, help="of each trace")
    parser.add_argument("--work", type=Path, help="folder in which store and profile are kept for the next time")
    return parser.parse_args()


# --- loads -----------------------------------------------------------------------------------------------------------


def _long_bursts(peak: float, minutes: float, seed: int) -> Trace:
    return bursts(talks(QUIET_SHARE * peak, minutes), peak=peak, every=120, length=60, seed=seed)


def _short_bursts(peak: float, minutes: float, seed: int) -> Trace:
    return bursts(talks(QUIET_SHARE * peak, minutes), peak=peak, every=30, length=8, seed=seed)


def _even(peak: float, minutes: float, seed: int) -> Trace:
    return poisson(talks(peak, minutes), seed=seed)


def _day(peak: float, minutes: float, seed: int) -> Trace:
    return day(talks(peak / (1 + SWING), minutes), swing=SWING, period=PERIOD_SECONDS, seed=seed)


LOADS: Mapping[str, Make] = {
    "bursts of 25 s in 60 s": bursty,
    "bursts of 60 s in 120 s": _long_bursts,
    "bursts of 8 s in 30 s": _short_bursts,
    "Poisson": _even,
    "day of 5 min": _day,
}


# --- ways ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """Means over traces of one kind."""

    attainment: float
    kl: float

    def fields(self) -> dict[str, float]:
        return {"attainment": round(self.attainment, 4), "kl": round(self.kl, 5)}


def _means(profile: Profile, make: Make, minutes: float, n_seeds: int) -> dict[str, Result]:
    """By way."""
    traces = [_ways(profile, find_contest(profile, minutes, seed, make)) for seed in range(1, n_seeds + 1)]
    return {way: _mean([ways[way] for ways in traces]) for way in traces[0]}


def _mean(results: Sequence[Result]) -> Result:
    return Result(fmean(r.attainment for r in results), fmean(r.kl for r in results))


def _ways(profile: Profile, contest: Contest) -> dict[str, Result]:
    start = ReplayOptions(start=contest.highest)
    highest = replay(contest.trace, Setting.of(profile, contest.objectives), Static(contest.highest), start)
    contest = restated(contest, highest.served)
    setting = Setting.of(profile, contest.objectives)
    wavers = ReplayOptions(start=contest.highest, slowdown=SLOWER, scatter=SCATTER)
    predictive = named_policy("predictive", setting)
    return {
        "highest": _result(highest, attainment(highest.served, contest.objectives)),
        "lowest": _replayed(contest, setting, Static(contest.lowest), start),
        "threshold": _replayed(contest, setting, named_policy("threshold", setting), start),
        "predictive": _replayed(contest, setting, predictive, start),
        "oracle": _replayed(contest, setting, plan_oracle(contest.trace, setting, start), start),
        "wavering": _replayed(contest, setting, predictive, wavers),
    }


def _replayed(contest: Contest, setting: Setting, policy: Policy, options: ReplayOptions) -> Result:
    outcome = replay(contest.trace, setting, policy, options)
    return _result(outcome, outcome.attainment)


def _result(outcome: Outcome, attained: float) -> Result:
    if outcome.mean_kl is None:
        raise SystemExit("the profile has no divergences; measure them with lamella profile --text FILE")
    return Result(attained, outcome.mean_kl)


# --- report ----------------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, found: Mapping[str, Mapping[str, Result]]) -> None:
    head = ["load", "highest", "lowest", "threshold", "predictive", "oracle", "predictive, wavering"]
    table([[*head, "KL / lowest", "KL / oracle"], *(_row(name, ways) for name, ways in found.items())])
    loads = {name: {way: result.fields() for way, result in ways.items()} for name, ways in found.items()}
    settings = {"model": args.model, "seeds": args.seeds, "minutes": args.minutes}
    record(f"qos_loads-{args.model}", {**settings, **_summary(found), "loads": loads})


def _row(name: str, ways: Mapping[str, Result]) -> list[object]:
    shown = [f"{r.attainment:.1%} {r.kl:.3f}" for r in ways.values()]
    ours = ways["predictive"].kl
    return [name, *shown, f"{ours / ways['lowest'].kl:.2f}", f"{ours / ways['oracle'].kl:.2f}"]


def _summary(found: Mapping[str, Mapping[str, Result]]) -> dict[str, Any]:
    ours = [ways["predictive"] for ways in found.values()]
    return {
        "attainment": round(fmean(r.attainment for r in ours), 4),
        "least_attainment": round(min(r.attainment for r in ours), 4),
        "wavering_attainment": round(fmean(ways["wavering"].attainment for ways in found.values()), 4),
        "kl_vs_static_low": round(fmean(ways["predictive"].kl / ways["lowest"].kl for ways in found.values()), 3),
        "kl_vs_oracle": round(fmean(ways["predictive"].kl / ways["oracle"].kl for ways in found.values()), 3),
    }


if __name__ == "__main__":
    main()
