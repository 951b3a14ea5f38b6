"""Claim: deciding places and bits together makes a cluster of unequal machines faster than rules do.

    .venv/bin/python -m benchmarks.cluster --work FOLDER --prepare              # losses and all shards, once
    sudo .venv/bin/python -m benchmarks.cluster --work FOLDER [--model qwen-0.5b] [--tokens 48] [--rounds 3]

Three nodes in network namespaces, with unequal shares of a core, memory limits and link rates; the coordinator has
embedding and head, and no layers.  Speeds and links are measured by the code of ``lamella cluster nodes``, losses are
weight differences.  Every planner answers the same question at the same delta; its placement is built, put on the nodes
and computes; planners that come to the same placement share one.  Reported: milliseconds for each token, predicted and
measured, and the joint plan against llama.cpp's split by memory.  The record is there after the first round.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.common import keep, open_model, record, reference_model, spread, table
from benchmarks.placed_engine import N_WARM_UP, milliseconds
from benchmarks.stores import work_folder
from lamella import api
from lamella.cluster.bringing import bring
from lamella.cluster.describing import describe, types_of
from lamella.cluster.dialling import Dialler
from lamella.cluster.folder import ClusterFolder
from lamella.cluster.forwarding import Forwarder
from lamella.cluster.layers import COORDINATOR
from lamella.cluster.messages import NodeReport
from lamella.cluster.reporting import report_apart
from lamella.core.artifacts import Measurement
from lamella.core.errors import NoPlacement
from lamella.core.model import ModelSpec
from lamella.measuring import MeasureSettings
from lamella.planning.cost import Choice, build_plan
from lamella.planning.placement import Placement, PlacementProblem, Request, account, place
from lamella.planning.placement.baselines import baseline
from lamella.planning.placement.cluster import Cluster
from lamella.planning.placement.document import read_cluster
from lamella.planning.placement.layers import hidden_state_bytes, layers_of
from lamella.planning.request import Overhead, PlanRequest
from lamella.planning.uniform import OUTSIDE
from lamella.store.store import Store
from tests.testbed.bed import NodeSpec, TestBed

MIB = 1 << 20
NODES = (
    NodeSpec("slow", rate_bits=100_000_000, cores=0.3, memory_bytes=700 * MIB),
    NodeSpec("middle", rate_bits=300_000_000, cores=0.6, memory_bytes=400 * MIB),
    NodeSpec("fast", rate_bits=1_000_000_000, cores=1.0, memory_bytes=330 * MIB),
)
BUFFER_BYTES = 160 * MIB
"""Of each node's memory, for the agent, for what computes, and for the page cache of the shards."""
PRECISIONS = ("int8", "int6", "int5", "int4")
BASELINES = ("one-node", "equal-layers", "by-memory", "by-memory-with-bits", "greedy-by-speed", "uniform-bits")
DEFAULT = "by-memory"
DELTA_AT = "int5"
"""Delta is what the model loses with all layers at this."""
PROMPT_TOKENS, N_CTX = 16, 512


@dataclass(slots=True)
class Planned:
    """A planner's answer, and what came of it.

    Attributes:
        measured_ms: of a token, the median of each round.
    """

    planner: str
    placement: Placement
    loss: float
    predicted_ms: float
    measured_ms: list[float]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.measured_ms)

    @property
    def error(self) -> float:
        """Share by which the prediction is beyond what was measured."""
        return self.predicted_ms / self.median_ms - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen-0.5b")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--planners", default=",".join(("joint", *BASELINES)))
    parser.add_argument("--work", type=Path, help="folder in which store and measurement are kept for the next time")
    parser.add_argument("--prepare", action="store_true", help="fill that folder, and measure nothing")
    args = parser.parse_args()
    if args.prepare:
        if args.work is None:
            parser.error("--prepare fills --work FOLDER")
        with work_folder(args.work) as folder:
            prepare(args.model, folder)
    else:
        with work_folder(args.work) as folder, work_folder(None) as place_, TestBed(place_) as bed:
            for node in NODES:
                bed.add(node)
            asyncio.run(compare(args, folder, bed.cluster))


def prepare(model: str, folder: Path) -> None:
    """What takes long and needs no nodes: the losses, and the shards that any placement is made of."""
    source = reference_model(model)
    losses(source, folder)
    spec = open_model(source).spec
    for precision in PRECISIONS:
        build(source, spec, folder / f"{model}.store", f"all-{precision}", (precision,) * spec.n_layers)


async def compare(args: argparse.Namespace, folder: Path, cluster: ClusterFolder) -> None:
    """All planners, measured in turns."""
    source = reference_model(args.model)
    spec, measurement = open_model(source).spec, losses(source, folder)
    problem = await question(spec, measurement, cluster, folder)
    found, failed = plans(problem, args.planners.split(","))
    store = folder / f"{args.model}.store"
    different = list({planned.placement: planned for planned in reversed(found)}.values())
    for planned in different:
        build(source, spec, store, planned.planner, planned.placement.precisions)
    async with Dialler(cluster) as dialler:
        for number in range(args.rounds):
            for planned in different if number % 2 else reversed(different):
                token_ms = await measure(dialler, Store.open(store), planned, args.tokens)
                print(f"round {number + 1}: {planned.planner} {token_ms:.1f} ms", file=sys.stderr)
                for same in found:
                    if same.placement == planned.placement:
                        same.measured_ms.append(token_ms)
            keep(f"cluster-{args.model}", result(args, problem, found, failed))
    report(args, problem, found, failed)


def losses(source: Path, folder: Path) -> Measurement:
    """Weight differences of all layers, measured once."""
    file = folder / f"{source.stem}.losses.json"
    if not file.exists():
        settings = MeasureSettings(scheme="block")
        api.write_artifact(api.measure(source, "weight-difference", settings=settings), file)
    return api.read_measurement(file)


async def question(spec: ModelSpec, measurement: Measurement, cluster: ClusterFolder, folder: Path) -> PlacementProblem:
    """What is to be placed, on nodes as they were measured just now."""
    types = sorted(types_of(spec, PRECISIONS))
    found = await api.look_at_nodes(cluster, types, int(spec.hyperparameters["embedding_length"]))
    away = [status.trouble for status in found if status.described is None or status.link is None]
    if away:
        raise SystemExit(f"a node does not answer: {away[0]}")
    here = await report_apart(folder / "kernels.json", 1, sorted({*types, "Q8_0"}))
    reports = {COORDINATOR: here} | {s.name: s.described.report for s in found if s.described is not None}
    passes = {s.name: s.pass_seconds for s in found if s.pass_seconds is not None}
    document = describe(spec, reports, {s.name: s.link for s in found if s.link is not None}, PRECISIONS, passes)
    machines = read_cluster(msgspec.json.encode(document), "the test bed")
    nodes = tuple(replace(n, buffer_bytes=BUFFER_BYTES) for n in machines.nodes if n.name != COORDINATOR)
    layers = layers_of(spec, measurement, PRECISIONS)
    request = Request(PROMPT_TOKENS, N_CTX - PROMPT_TOKENS)
    delta = sum(layer.options[DELTA_AT].loss for layer in layers)
    return PlacementProblem(
        layers, Cluster(nodes, COORDINATOR, machines.links), request, delta, hidden_state_bytes(spec),
        (1 + request.token_passes) * head_seconds(spec, here),
    )  # fmt: skip


def head_seconds(spec: ModelSpec, here: NodeReport) -> float:
    """Of the logits of one token on the coordinator, in INT8."""
    return 1e-9 * spec.tensor("token_embd.weight").n_weights * here.speeds["Q8_0"].token


def plans(problem: PlacementProblem, planners: Sequence[str]) -> tuple[list[Planned], dict[str, str]]:
    """Each planner's placement, and why some have none."""
    found, failed = list[Planned](), dict[str, str]()
    for name in planners:
        try:
            solution = place(problem) if name == "joint" else baseline(name, problem)
        except NoPlacement as error:
            failed[name] = str(error)
            continue
        placement = solution.placement
        found.append(Planned(name, placement, solution.account.loss, 1e3 * token_seconds(problem, placement), []))
    return found, failed


def token_seconds(problem: PlacementProblem, placement: Placement) -> float:
    """Of one generated token: what the first that is measured adds to a request that ends before it."""
    before, after = (replace(problem.request, new_tokens=N_WARM_UP + n) for n in (1, 2))
    fixed = problem.fixed_seconds / (1 + problem.request.token_passes)
    seconds = (account(replace(problem, request=request), placement).seconds for request in (before, after))
    shorter, longer = seconds
    return longer - shorter + fixed


def build(source: Path, spec: ModelSpec, store: Path, name: str, precisions: tuple[str, ...]) -> None:
    """A variant with layers at some precisions; layers that others have too are there already."""
    plan = build_plan("placement", PlanRequest(spec, outside=OUTSIDE), Overhead(), Choice(precisions, OUTSIDE))
    names = {v.name for v in Store.open(store).readable_variants()[0]} if store.exists() else set()
    if name in names:
        Store.open(store).remove(name)
    api.build(source, store, plan, name)


async def measure(dialler: Dialler, store: Store, planned: Planned, n_tokens: int) -> float:
    """Put a placement on its nodes and let it compute; the median of a token's milliseconds."""
    shards = {s.label: s for s in store.variant(planned.planner).shards}
    forwarders: dict[str, Forwarder] = {}
    try:
        for segment in planned.placement.segments:
            wanted = [shards[f"layer {i}"] for i in range(segment.first, segment.end)]
            with store.lease(reading=True) as lease:
                lease.hold_everything()
                await bring(dialler, segment.node, store, wanted)
            forwarders[segment.node] = await Forwarder(dialler, segment.node, shards=wanted).__aenter__()
            await forwarders[segment.node].ready(60)
        places = [(forwarders[s.node].endpoint, s.first, s.end) for s in planned.placement.segments]
        times = await asyncio.to_thread(milliseconds, str(store.path), planned.planner, places, n_tokens)
    finally:
        for forwarder in forwarders.values():
            await forwarder.__aexit__()
    return statistics.median(times)


def report(
    args: argparse.Namespace, problem: PlacementProblem, found: Sequence[Planned], failed: dict[str, str]
) -> None:
    """A table, and the record."""
    rows: list[list[object]] = [["planner", "predicted ms", "measured ms", "error", "loss", "layers"]]
    for p in found:
        layers = " ".join(f"{s.node}:{len(s.precisions)}" for s in p.placement.segments)
        rows.append([p.planner, p.predicted_ms, p.median_ms, f"{100 * p.error:+.0f} %", p.loss, layers])
    table(rows)
    record(f"cluster-{args.model}", result(args, problem, found, failed))


def result(
    args: argparse.Namespace, problem: PlacementProblem, found: Sequence[Planned], failed: dict[str, str]
) -> dict[str, Any]:
    """Of the rounds so far."""
    medians = {p.planner: p.median_ms for p in found}
    joint, default = medians.get("joint"), medians.get(DEFAULT)
    return {
        "model": args.model,
        "nodes": [{"name": n.name, "cores": n.cores, "memory_bytes": n.memory_bytes, "rate_bits": n.rate_bits}
                  for n in NODES],
        "measured": {
            "fixed_ms": 1e3 * problem.fixed_seconds / (1 + problem.request.token_passes),
            "nodes": {n.name: {"pass_seconds": n.pass_seconds, "speeds": msgspec.to_builtins(n.speeds)}
                      for n in problem.cluster.nodes},
            "links": {b: msgspec.to_builtins(link) for (_, b), link in problem.cluster.links.items()},
        },
        "delta": problem.loss_budget,
        "tokens": args.tokens,
        "plans": [{
            "planner": p.planner, "predicted_ms": round(p.predicted_ms, 3), "measured_ms": spread(p.measured_ms),
            "error": round(p.error, 4), "loss": p.loss,
            "segments": [{"node": s.node, "first": s.first, "precisions": s.precisions} for s in p.placement.segments],
        } for p in found],
        "no_placement": failed,
        "predicted_ms": next((round(p.predicted_ms, 3) for p in found if p.planner == "joint"), None),
        "measured_ms": joint and round(joint, 3),
        "speedup_vs_default": round(default / joint, 3) if joint and default else None,
    }  # fmt: skip


if __name__ == "__main__":
    main()
