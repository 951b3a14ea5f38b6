"""How fast placements are proven, and whether they are the best ones.

    python -m benchmarks.placement [--only eight,sixteen,small,several,large]

Random problems (``benchmarks/placements.py``): 80 layers and 6 precisions on 8 and on 16 nodes, solved to a proven gap
of 1 %; 200 small ones against trying every placement; three models on four nodes, the heuristic beside the exact
program; 12 models on 30 nodes and 20 on 100, beside the relaxation's bound.  Results go to
benchmarks/results/placement.json; parts that are left out stay there as they are, and each instance on 8 or 16 nodes is
there as soon as it is solved (``--first`` goes on behind those).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.common import RESULTS, commit, keep, record, spread, table
from benchmarks.placements import random_problem, random_several
from lamella.core.errors import NoPlacement
from lamella.planning.placement import PlacementProblem, place
from lamella.planning.placement.cluster import TRANSFERS
from lamella.planning.placement.several import SeveralProblem, place_several, solve_several
from tests.planning.placement.small import best_by_trial, small_problem

GAP = 0.01
EXACT_GAP, EXACT_SECONDS = 1e-3, 20.0
SAME = 1e-6
"""Share by which two objectives may differ and be called equal."""
NODES = {"eight": 8, "sixteen": 16}
LARGE = ((12, 30, 12), (20, 100, 24))
"""Models, nodes, layers of the largest model."""
PARTS = (*NODES, "small", "several", "large")
KEPT = ("median_s_8", "median_s_16", "mismatches", "heuristic_gap", *PARTS)


def main() -> None:
    """Measure, print tables, keep the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--instances", type=int, default=10, help="of the large problems")
    parser.add_argument("--first", type=int, default=0, help="instance to go on from")
    parser.add_argument("--small", type=int, default=200)
    parser.add_argument("--several", type=int, default=6)
    asked = parser.parse_args()
    path = RESULTS / "placement.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    found = {key: known[key] for key in KEPT if key in known}
    for part in asked.only.split(","):
        for measured in measure(part, asked, found):
            found |= measured
            keep("placement", in_order(found))
    record("placement", in_order(found))


def in_order(found: dict[str, Any]) -> dict[str, Any]:
    """As the record has it."""
    return {key: found[key] for key in KEPT if key in found}


def measure(part: str, asked: argparse.Namespace, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One part of the record; more than once where it grows."""
    if part in NODES:
        yield from proofs(part, asked, known)
    elif part == "small":
        mismatches, feasible = compare(asked.small)
        yield {"mismatches": mismatches, "small": {"instances": asked.small, "that_can_be_placed": feasible}}
    elif part == "several":
        yield beside_program(asked.several)
    elif part == "large":
        large = [beside_bound(random_several(0, *sizes)) for sizes in LARGE]
        table([list(large[0]), *(list(row.values()) for row in large)])
        yield {"large": large}
    else:
        raise SystemExit(f"no part is called '{part}'; there are {', '.join(PARTS)}")


def proofs(part: str, asked: argparse.Namespace, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """80 layers to a proven gap; instances of earlier runs stay where ``--first`` begins behind them."""
    nodes = NODES[part]
    rows = known.get(part, {}).get("rows", [])[: asked.first]
    for seed in range(asked.first, asked.first + asked.instances):
        rows.append({"seed": seed, **timed_solution(random_problem(seed, 80, nodes)), "commit": commit()})
        print(nodes, rows[-1], flush=True)
        seconds = spread([row["seconds"] for row in rows])
        reached = sum(row["gap"] <= GAP for row in rows)
        yield {f"median_s_{nodes}": seconds["median"], part: {"seconds": seconds, "reached": reached, "rows": rows}}


def beside_program(instances: int) -> dict[str, Any]:
    """Three models on four nodes; those that fit, by the program or by the heuristic."""
    several = [beside_exact(random_several(seed, 3, 4, 6)) for seed in range(instances)]
    table([list(several[0]), *(list(s.values()) for s in several)])
    above = [s["above_exact"] for s in several if s["above_exact"] is not None]
    return {"heuristic_gap": max(above, default=None), "several": several}


def timed_solution(problem: PlacementProblem) -> dict[str, Any]:
    """Seconds until the planner answered, and the gap that it proved."""
    start = time.perf_counter()
    found = place(problem, gap=GAP)
    return {"seconds": time.perf_counter() - start, "gap": found.gap}


def beside_exact(problem: SeveralProblem) -> dict[str, float | None]:
    """The heuristic beside the exact program; None where one of them found nothing in time."""
    exact = found = None
    try:
        exact = solve_several(problem, gap=EXACT_GAP, time_limit_seconds=EXACT_SECONDS)
    except NoPlacement as error:
        print(f"exact: {error}")
    start = time.perf_counter()
    try:
        found = place_several(problem)
    except NoPlacement as error:
        print(f"heuristic: {error}")
    return {
        "seconds": time.perf_counter() - start,
        "above_exact": found.objective / exact.objective - 1 if found and exact else None,
        "exact_gap": exact.gap if exact else None,
        "above_bound": found.gap if found else None,
    }


def beside_bound(problem: SeveralProblem) -> dict[str, float]:
    """The heuristic beside what the relaxation proves."""
    start = time.perf_counter()
    found = place_several(problem)
    return {
        "models": len(problem.tenants),
        "nodes": len(problem.cluster.nodes),
        "seconds": time.perf_counter() - start,
        "above_bound": found.gap,
    }


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
