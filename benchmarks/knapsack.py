"""How fast the knapsack is, and how far from the proven best.

    python -m benchmarks.knapsack MODEL MEASUREMENT

MODEL is a GGUF file, MEASUREMENT what ``lamella measure --metric sensitivity --out`` wrote for it.  The same is timed
on 300 tensors of 12 types with losses made by formula (seeded).  Results go to benchmarks/results/knapsack-NAME.json.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import record, spread, table
from lamella import api
from lamella.core.artifacts import Plan, TensorLoss
from lamella.core.model import ModelIdentity, ModelSpec, TensorSpec
from lamella.core.precision import GGML_TYPES
from lamella.planning.frontier import frontier
from lamella.planning.policies import make_plan
from lamella.planning.request import PlanRequest

REPEATS = 5
BITS = (4.5, 5.0, 5.5, 6.0, 7.0)
TWELVE = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_0", "IQ4_XS", "IQ3_S", "Q3_K", "Q2_K")


def main() -> None:
    """Measure, print a table, keep the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("measurement", type=Path)
    asked = parser.parse_args()
    measurement = api.read_measurement(asked.measurement)
    real = PlanRequest(api.load_spec(asked.model), losses=tuple(measurement.tensors))
    timed = {asked.model.stem: real, "300 tensors, 12 types": synthetic(300)}
    speeds = {name: times(request) for name, request in timed.items()}
    gaps = [gap(real, bits) for bits in BITS]
    table(
        [
            ["", "plan s", "frontier of 25 s"],
            *([n, s["plan"]["median"], s["frontier"]["median"]] for n, s in speeds.items()),
        ]
    )
    table([["bits/weight", "KL", "proven", "above", "bound", "exact s"], *(list(g.values()) for g in gaps)])
    record(f"knapsack-{asked.model.stem}", {"seconds": speeds, "gaps": gaps})


def times(request: PlanRequest) -> dict[str, Any]:
    """Seconds of one plan and of a frontier of 25 points."""
    plan = replace(request, bits_per_weight=5.0)
    return {
        "plan": spread([seconds(lambda: make_plan("knapsack", plan)) for _ in range(REPEATS)]),
        "frontier": spread([seconds(lambda: frontier(request, 25)) for _ in range(REPEATS)]),
    }


def gap(request: PlanRequest, bits: float) -> dict[str, float]:
    """The predicted loss of the sweep's plan beside the proven best."""
    asked = replace(request, bits_per_weight=bits)
    found = loss(make_plan("knapsack", asked))
    start = time.perf_counter()
    best = make_plan("knapsack", replace(asked, exact=True))
    taken = time.perf_counter() - start
    return {
        "bits_per_weight": bits,
        "loss": found,
        "proven_loss": loss(best),
        "share_above": found / loss(best) - 1,
        "proven_bound": float(best.settings["loss_bound"]),
        "exact_seconds": round(taken, 2),
    }


def loss(plan: Plan) -> float:
    assert plan.predicted_loss is not None
    return plan.predicted_loss


def synthetic(n_tensors: int) -> PlanRequest:
    """Tensors of four sizes whose losses fall with the bits, by seeded random factors."""
    draw = random.Random(0)
    tensors = [TensorSpec("token_embd.weight", (4096, 32000), "F16")]
    shapes = ((4096, 4096), (4096, 1024), (4096, 14336), (14336, 4096))
    tensors += [TensorSpec(f"blk.{i // 7}.part_{i % 7}.weight", shapes[i % 4], "F16") for i in range(n_tensors - 1)]
    losses = []
    for tensor in tensors:
        scale = draw.lognormvariate(-6, 1)
        by_type = {n: scale * 4 ** (4.5 - GGML_TYPES[n].bits_per_weight) * draw.lognormvariate(0, 0.25) for n in TWELVE}
        losses.append(TensorLoss(tensor.name, "Q4_0", by_type["Q4_0"], 0.0, {**by_type, "F16": 0.0}))
    spec = ModelSpec(ModelIdentity("made", "made", "s"), (n_tensors + 5) // 7, tuple(tensors))
    return PlanRequest(spec, losses=tuple(losses))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
