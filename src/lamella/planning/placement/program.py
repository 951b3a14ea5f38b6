"""The placement as one readable integer program: PuLP writes it, HiGHS solves it.

    solution = solve_program(problem)

It says what is meant, constraint by constraint (docs/placement.md), and the fast planner (``solver``) is checked
against it.  It takes seconds for 32 layers on 4 nodes, and does not end for 80 layers on 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lamella.core.errors import NoPlacement
from lamella.planning.placement.cluster import Cluster
from lamella.planning.placement.facts import no_placement
from lamella.planning.placement.problem import PlacementProblem, check_problem
from lamella.planning.placement.result import Placement, Segment, Solution, account, violations

GAP = 1e-6
TIME_LIMIT_SECONDS = 60.0
_BIG = 1e6
"""Losses and bytes are scaled to limits of this size, so that the solver's absolute tolerances mean little."""


def solve_program(
    problem: PlacementProblem, gap: float = GAP, time_limit_seconds: float = TIME_LIMIT_SECONDS
) -> Solution:
    """The placement of least objective, to a proven gap.

    Raises:
        InvalidRequest: the question has no meaning.
        NoPlacement: no placement keeps all limits, or none was found in time.
    """
    import pulp  # a third of a second, which only those pay who ask for it

    check_problem(problem)
    program = pulp.LpProblem("placement", pulp.LpMinimize)
    model = ModelProgram(problem, program)
    program += model.objective()
    add_limits(program, problem.cluster, [model])
    solver = pulp.HiGHS(msg=False, gapRel=gap, timeLimit=time_limit_seconds, threads=1)
    program.solve(solver)
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        raise no_placement(problem, proven=program.status == pulp.LpStatusInfeasible)
    placement = model.read()
    broken = violations(problem, placement)
    if broken:
        raise NoPlacement(f"the solver's tolerance let a limit be broken: {'; '.join(broken)}")
    bound = program.solverModel.getInfo().mip_dual_bound + problem.fixed_seconds  # PuLP leaves constants out
    costs = account(problem, placement)
    return Solution(placement, costs, min(costs.objective, bound), "program")


class ModelProgram:
    """The variables and constraints of one model; several may be in one program, on the same nodes.

    Variables:
        runs[l, n, p]: layer l runs on node n at precision p.
        begins[l, n], ends[l, n]: the segment of node n begins, or ends, with layer l.
        passes[l, m, n]: the hidden state goes from node m to node n between layers l - 1 and l (mesh only).
    """

    def __init__(self, problem: PlacementProblem, program: Any, prefix: str = "") -> None:
        """Add variables and constraints, but no objective and no limits of the nodes.

        Args:
            prefix: of all names.
        """
        import pulp

        self._pulp, self._problem, self._program, self._prefix = pulp, problem, program, prefix
        self._nodes, self._layers = range(len(problem.cluster.nodes)), range(len(problem.layers))
        self._runs: dict[tuple[int, int, str], Any] = {}
        self._begins = self._variables("begins")
        self._ends = self._variables("ends")
        self._passes: dict[tuple[int, int, int], Any] = {}
        self._add_runs()
        self._add_one_place()
        self._add_contiguity()
        self._add_loss_budget()
        if problem.cluster.transfer == "mesh":
            self._add_passes()

    def read(self) -> Placement:
        """The placement that the variables' values say."""
        chosen = {i: (n, p) for (i, n, p), x in self._runs.items() if (x.value() or 0.0) > 0.5}
        segments: list[Segment] = []
        for i in self._layers:
            node, precision = self._problem.cluster.nodes[chosen[i][0]].name, chosen[i][1]
            if segments and segments[-1].node == node:
                segments[-1] = Segment(node, segments[-1].first, (*segments[-1].precisions, precision))
            else:
                segments.append(Segment(node, i, (precision,)))
        return Placement(tuple(segments))

    def objective(self) -> Any:
        """Worth of the seconds of a request, but for the fixed ones."""
        problem, nodes = self._problem, self._problem.cluster.nodes
        compute = (
            (problem.layer_seconds(i, nodes[n], p) or 0.0) * problem.worth_of_second(nodes[n]) * x
            for (i, n, p), x in self._runs.items()
        )
        opened = (
            problem.pass_seconds(nodes[n]) * problem.worth_of_second(nodes[n]) * x for (_, n), x in self._begins.items()
        )
        return self._pulp.lpSum([*compute, *opened, *self._home_transfers(), *self._hand_overs()])

    def n_bytes(self, node: int) -> Any:
        """What is on a node: weights, KV cache and buffers."""
        problem = self._problem
        layers = (problem.layer_bytes(i, p) * x for (i, m, p), x in self._runs.items() if m == node)
        return self._pulp.lpSum(layers) + problem.cluster.nodes[node].buffer_bytes * self._begun(node)

    def seconds(self, node: int) -> Any:
        """That a request computes on a node."""
        problem, described = self._problem, self._problem.cluster.nodes[node]
        times = ((problem.layer_seconds(i, described, p), x) for (i, m, p), x in self._runs.items() if m == node)
        layers = self._pulp.lpSum((seconds or 0.0) * x for seconds, x in times)
        return layers + problem.pass_seconds(described) * self._begun(node)

    def _begun(self, node: int) -> Any:
        return self._pulp.lpSum(self._begins[i, node] for i in self._layers)

    def _variables(self, what: str) -> dict[tuple[int, int], Any]:
        pulp = self._pulp
        return {
            (i, n): self._program.add_variable(f"{self._prefix}{what}_{i}_{n}", cat=pulp.LpBinary)
            for i in self._layers
            for n in self._nodes
        }

    def _add_runs(self) -> None:
        for i in self._layers:
            for n, node in enumerate(self._problem.cluster.nodes):
                for p in self._problem.layers[i].options:
                    if self._problem.layer_seconds(i, node, p) is not None:
                        name = f"{self._prefix}runs_{i}_{n}_{p}"
                        self._runs[i, n, p] = self._program.add_variable(name, cat=self._pulp.LpBinary)

    def _of(self, layer: int, node: int) -> Any:
        """1 where a layer is on a node, at whatever precision."""
        return self._pulp.lpSum(x for (i, n, _), x in self._at(layer, node))

    def _at(self, layer: int, node: int) -> Sequence[tuple[tuple[int, int, str], Any]]:
        keys = ((layer, node, p) for p in self._problem.layers[layer].options)
        return [(key, self._runs[key]) for key in keys if key in self._runs]

    def _home_transfers(self) -> list[Any]:
        """The way from and to the coordinator: of each segment in a star, of the first and the last in a mesh."""
        problem, cluster = self._problem, self._problem.cluster
        last, star = len(self._layers) - 1, cluster.transfer == "star"
        terms = []
        for n, node in enumerate(cluster.nodes):
            link = cluster.link(cluster.coordinator, node.name)
            for i in self._layers:
                if star or i == 0:
                    terms.append(problem.transfer_seconds(link, i) * self._begins[i, n])
                if star or i == last:
                    terms.append(problem.transfer_seconds(link, i + 1) * self._ends[i, n])
        return terms

    def _add_one_place(self) -> None:
        """Each layer has one node and one precision."""
        for i in self._layers:
            everywhere = self._pulp.lpSum(x for n in self._nodes for _, x in self._at(i, n))
            self._program += everywhere == 1, f"{self._prefix}one_place_of_layer_{i}"

    def _add_contiguity(self) -> None:
        """A node's layers are a range: it begins once at most, where the layer before is elsewhere; and so it ends."""
        last = len(self._layers) - 1
        for n in self._nodes:
            self._program += self._begun(n) <= 1, f"{self._prefix}one_segment_of_node_{n}"
            for i in self._layers:
                before = self._of(i - 1, n) if i else 0
                after = self._of(i + 1, n) if i < last else 0
                self._program += self._of(i, n) - before <= self._begins[i, n], f"{self._prefix}begin_{i}_{n}"
                self._program += self._of(i, n) - after <= self._ends[i, n], f"{self._prefix}end_{i}_{n}"

    def _add_loss_budget(self) -> None:
        """The layers' losses sum to no more than the budget."""
        problem = self._problem
        if problem.loss_budget == float("inf"):
            return
        scale = _BIG / problem.loss_budget if problem.loss_budget > 0 else _BIG
        lost = self._pulp.lpSum(scale * problem.layers[i].options[p].loss * x for (i, _, p), x in self._runs.items())
        self._program += lost <= scale * problem.loss_budget, f"{self._prefix}loss_budget"

    def _add_passes(self) -> None:
        """In a mesh, where one segment ends and the next begins, the hidden state takes the way between their nodes."""
        for i in self._layers[1:]:
            for m in self._nodes:
                for n in self._nodes:
                    if m != n:
                        way = self._program.add_variable(f"{self._prefix}passes_{i}_{m}_{n}", 0, 1)
                        handed = self._ends[i - 1, m] + self._begins[i, n] - 1
                        self._program += way >= handed, f"{self._prefix}pass_{i}_{m}_{n}"
                        self._passes[i, m, n] = way

    def _hand_overs(self) -> list[Any]:
        cluster = self._problem.cluster
        names = [node.name for node in cluster.nodes]
        return [
            self._problem.transfer_seconds(cluster.link(names[m], names[n]), i) * way
            for (i, m, n), way in self._passes.items()
        ]


def add_limits(program: Any, cluster: Cluster, models: Sequence[ModelProgram]) -> None:
    """Memory, and seconds where they are limited, of each node: what all models need of it together."""
    for n, node in enumerate(cluster.nodes):
        scale = _BIG / max(1, node.memory_bytes)
        used = sum(scale * model.n_bytes(n) for model in models)
        program += used <= scale * node.memory_bytes, f"memory_of_{n}"
        if node.seconds_limit < float("inf"):
            scale = _BIG / (node.seconds_limit or 1.0)
            busy = sum(scale * model.seconds(n) for model in models)
            program += busy <= scale * node.seconds_limit, f"seconds_of_{n}"
