"""How fast placements are proven, and whether they are the best ones.

    python -m benchmarks.placement

Random problems (``benchmarks/placements.py``): 80 layers and 6 precisions on 8 and on 16 nodes, solved to a proven gap
of 1 %; 200 small ones against trying every placement; three models on four nodes, the heuristic beside the exact
program.  ``--large`` adds 20 models on 100 nodes, beside the relaxation's bound (some minutes).  Results go to
benchmarks/results/placement.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.common import record, spread, table
from benchmarks.placements import random_problem, random_several
from lamella.core.errors import NoPlacement
from lamella.planning.placement import PlacementProblem, place
from lamella.planning.placement.cluster import TRANSFERS
from lamella.planning.placement.several import SeveralProblem, place_several, solve_several
from tests.planning.placement.small import best_by_trial, small_problem

GAP = 0.01
EXACT_GAP, EXACT_SECONDS = 1e-3, 60.0
SAME = 1e-6
"""Share by which two objectives may differ and be called equal."""


def main() -> None:
    """Measure, print a table, keep the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=10)
    parser.add_argument("--small", type=int, default=200)
    parser.add_argument("--several", type=int, default=6)
    parser.add_argument("--large", action="store_true")
    asked = parser.parse_args()
    timed = {n: [timed_solution(random_problem(seed, 80, n)) for seed in range(asked.instances)] for n in (8, 16)}
    mismatches, feasible = compare(asked.small)
    table(
        [
            ["nodes", "seed", "seconds", "gap"],
            *([n, i, *r.values()] for n, rs in timed.items() for i, r in enumerate(rs)),
        ]
    )
    seconds = {n: spread([r["seconds"] for r in results]) for n, results in timed.items()}
    several = [s for s in (beside_exact(random_several(seed, 3, 4, 6)) for seed in range(asked.several)) if s]
    table([["seconds", "above exact", "proven gap of exact", "above bound"], *(list(s.values()) for s in several)])
    large = beside_bound(random_several(0, 20, 100, 24)) if asked.large else None
    record(
        "placement",
        {
            "median_s_8": seconds[8]["median"],
            "median_s_16": seconds[16]["median"],
            "gap_reached": {n: sum(r["gap"] <= GAP for r in results) for n, results in timed.items()},
            "mismatches": mismatches,
            "small": {"instances": asked.small, "that_can_be_placed": feasible},
            "heuristic_gap": max((s["above_exact"] for s in several), default=None),
            "several": several,
            "large": large,
            "seconds": seconds,
            "gaps": {n: spread([r["gap"] for r in results]) for n, results in timed.items()},
        },
    )


def timed_solution(problem: PlacementProblem) -> dict[str, Any]:
    """Seconds until the planner answered, and the gap that it proved."""
    start = time.perf_counter()
    found = place(problem, gap=GAP)
    return {"seconds": time.perf_counter() - start, "gap": found.gap}


def beside_exact(problem: SeveralProblem) -> dict[str, float] | None:
    """The heuristic beside the exact program; None where the models do not fit together."""
    try:
        exact = solve_several(problem, gap=EXACT_GAP, time_limit_seconds=EXACT_SECONDS)
    except NoPlacement:
        return None
    start = time.perf_counter()
    found = place_several(problem)
    return {
        "seconds": time.perf_counter() - start,
        "above_exact": found.objective / exact.objective - 1,
        "exact_gap": exact.gap,
        "above_bound": found.gap,
    }


def beside_bound(problem: SeveralProblem) -> dict[str, float]:
    """The heuristic beside what the relaxation proves."""
    start = time.perf_counter()
    found = place_several(problem, rounds=1)
    return {"seconds": time.perf_counter() - start, "above_bound": found.gap}


def compare(n_problems: int) -> tuple[int, int]:
    """Small problems whose answer is not the best of all placements, and how many have a placement."""
    mismatches = feasible = 0
    for seed in range(n_problems):
        problem = small_problem(seed, TRANSFERS[seed % 2])
        best = best_by_trial(problem)
        feasible += best is not None
        try:
            found: float | None = place(problem, gap=0.0).account.objective
        except NoPlacement:
            found = None
        same = found == best or (found is not None and best is not None and abs(found - best) <= SAME * best)
        mismatches += not same
    return mismatches, feasible


if __name__ == "__main__":
    main()
