"""A bound from what each node can hold: whole layers, in whole segments.

``prices`` lets shares of layers and of segments fill the nodes, which says little where a node holds few layers.  Here
a price is paid for each layer that is run, and each node by itself takes the segments that earn it most, one of each
model at most, within its memory.  What is paid for all layers, less what nodes earn, bounds every choice of placements
from below, whatever the prices (Lagrange).  Losses and the nodes' time have prices as they have there.

What a node takes is a knapsack: a dynamic program over its memory in cells, model after model, layer after layer.
Bytes are rounded down to cells, so that every real choice is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lamella.planning.placement.arrays import NO_BYTES, Arrays, Floats, Ints, to_arrays
from lamella.planning.placement.routes import reached_with_reuse
from lamella.planning.placement.segments import ROUNDING, segment_table
from lamella.planning.placement.several.ascent import Ascent
from lamella.planning.placement.several.prices import MEMORY_PRICES, Dual, buffers_of, charge, pass_seconds_of
from lamella.planning.placement.several.problem import SeveralProblem, Tenant

_CELLS = 192
"""Of the memory of the largest of the nodes that are worked on together."""
_TOGETHER = 32
"""Nodes worked on together, of alike memory."""
_MOST_STEPS, _WORK, _STEP_WORK = 400, 2e9, 6000
"""Steps of the prices, and so many numbers written in all; a step of the dynamic program costs as so many more."""
_MOMENTUM = 0.7


def bound_by_nodes(problem: SeveralProblem, dual: Dual, known: float) -> float:
    """No choice of placements costs less.

    Args:
        dual: prices to begin with.
        known: objective of known placements, which no bound is above.
    """
    question = _Question(problem)
    ascent = Ascent(question.start(dual)[None], known, _MOMENTUM)
    for _ in range(int(np.clip(_WORK // question.work, 1, _MOST_STEPS))):
        bound, excess = question.evaluate(ascent.prices[0])
        ascent.step(np.array([bound]), excess[None])
        if ascent.best[0] >= known:
            break
    return float(ascent.best[0])


@dataclass(frozen=True, slots=True)
class _Prices:
    """Of each model's layers, of its loss (worth of the budget), and of the nodes' time (worth of all there is)."""

    layers: Sequence[Floats]
    loss: Floats
    time: Floats

    def flat(self) -> Floats:
        return np.concatenate([*self.layers, self.loss, self.time])


class _Question:
    """Several models, and their nodes in groups of alike memory."""

    def __init__(self, problem: SeveralProblem) -> None:
        self._tenants = problem.tenants
        self._arrays = [to_arrays(tenant.problem) for tenant in problem.tenants]
        budgets = np.array([arrays.loss_budget for arrays in self._arrays])
        self._budgets, self._time = np.where(budgets > 0, budgets, 1.0), problem.busy_limit or 1.0
        self._limits = np.concatenate(
            [budgets / self._budgets, np.full(len(problem.cluster.nodes), problem.busy_limit / self._time)]
        )
        memory = np.array([node.memory_bytes for node in problem.cluster.nodes], dtype=np.int64)
        order = np.argsort(memory, kind="stable")
        parts = [order[at : at + _TOGETHER] for at in range(0, len(order), _TOGETHER)]
        self._nodes = [_Nodes(self._tenants, self._arrays, nodes, memory[nodes]) for nodes in parts]

    @property
    def work(self) -> float:
        """Numbers that one evaluation writes."""
        steps = sum(arrays.n_bytes.size for arrays in self._arrays)
        return float(sum(steps * (_STEP_WORK + _CELLS * len(group.nodes)) for group in self._nodes))

    def start(self, dual: Dual) -> Floats:
        """For each layer what it adds to its model's cheapest relaxed placement, at the prices found."""
        layers = []
        for tenant, arrays, worth, scale in zip(self._tenants, self._arrays, dual.losses, self._budgets, strict=True):
            table = segment_table(charge(arrays, dual.prices, tenant), float(worth) / scale, MEMORY_PRICES)
            layers.append(np.maximum(0.0, np.diff(reached_with_reuse(table.bound))))
        return _Prices(layers, dual.losses, dual.prices.time * self._time).flat()

    def evaluate(self, flat: Floats) -> tuple[float, Floats]:
        """The bound at these prices, and by what each limit is exceeded: layers that are not run, losses, time."""
        prices = self._split(flat)
        paid = sum(float(of_model.sum()) for of_model in prices.layers)
        constants = sum(t.weight * a.constant for t, a in zip(self._tenants, self._arrays, strict=True))
        bound = paid + constants - float(np.concatenate([prices.loss, prices.time]) @ self._limits)
        missing = [np.ones(arrays.n_layers) for arrays in self._arrays]
        lost, busy = np.zeros(len(self._arrays)), np.zeros(len(prices.time))
        for group in self._nodes:
            least, chosen = group.fill(self._worths(group, prices))
            bound += least - ROUNDING * (abs(least) + paid)
            for k, layer, nodes, precisions in chosen:
                at, arrays = group.nodes[nodes], self._arrays[k]
                missing[k][layer] -= len(at)
                lost[k] += arrays.loss[layer, precisions].sum() / self._budgets[k]
                busy[at] += self._tenants[k].requests_per_second * arrays.seconds[layer, at, precisions] / self._time
            busy[group.nodes] += group.passes / self._time
        return bound, np.concatenate([*missing, np.concatenate([lost, busy]) - self._limits])

    def _split(self, flat: Floats) -> _Prices:
        ends = np.cumsum([arrays.n_layers for arrays in self._arrays])
        *layers, rest = np.split(flat, ends)
        return _Prices(layers, *np.split(rest, [len(self._arrays)]))

    def _worths(self, group: _Nodes, prices: _Prices) -> Iterator[_Worth]:
        """What layers and segments cost the nodes of a group, less what they are paid."""
        time = prices.time[group.nodes] / self._time
        for k, (tenant, arrays) in enumerate(zip(self._tenants, group.arrays, strict=True)):
            rate, weight = tenant.requests_per_second, tenant.weight
            seconds = np.where(np.isfinite(arrays.seconds), arrays.seconds, 0.0) * (rate * time)[:, None]
            possible = np.isfinite(arrays.loss)
            loss = np.where(possible, prices.loss[k] / self._budgets[k] * np.where(possible, arrays.loss, 0.0), np.inf)
            layers = weight * arrays.cost + seconds + loss[:, None] - prices.layers[k][:, None, None]
            opening = weight * arrays.opening + rate * time * group.pass_seconds[k]
            yield _Worth(layers, opening[:, None] + weight * arrays.entering, weight * arrays.leaving)


@dataclass(frozen=True, slots=True)
class _Worth:
    """What one model costs nodes, less what it pays.

    Attributes:
        layers: [L, N, P].
        entering, leaving: [N, L + 1] of a segment that begins, or ends, at a boundary.
    """

    layers: Floats
    entering: Floats
    leaving: Floats


@dataclass(frozen=True, slots=True)
class _Trace:
    """How one model was added, for each number of cells.

    Attributes:
        precisions: [L, cells + 1, N] of a segment that goes on to this layer.
        begins: [L, cells + 1, N] whether it begins here, with so many cells left before it.
        ends: [cells + 1, N] with which layer the best segment ends; -1 where none is best.
    """

    precisions: Ints
    begins: Ints
    ends: Ints


class _Nodes:
    """Some nodes, each of which takes what earns it most.

    Attributes:
        nodes: [N] their numbers.
        arrays: the models on these nodes.
        pass_seconds: of each model, [N].
        passes: [N] share of the time that passes take, of what was taken last.
    """

    def __init__(self, tenants: Sequence[Tenant], arrays: Sequence[Arrays], nodes: Ints, memory: Ints) -> None:
        unit = max(1, int(memory.max()) // _CELLS)
        self.nodes, self._tenants = nodes, tenants
        self.arrays = [of_model.on(nodes.tolist()) for of_model in arrays]
        self.pass_seconds = [pass_seconds_of(tenant)[nodes] for tenant in tenants]
        self.passes = np.zeros(len(nodes))
        self._cells = np.maximum(memory, 0) // unit
        self._buffers = [buffers_of(tenant)[nodes] // unit for tenant in tenants]
        self._units = [np.where(a.n_bytes < NO_BYTES, a.n_bytes // unit, NO_BYTES) for a in self.arrays]

    def fill(self, worths: Iterator[_Worth]) -> tuple[float, list[tuple[int, int, Ints, Ints]]]:
        """The least that all nodes together cost, and model, layer, nodes and precisions of what they take."""
        best, traces = np.zeros((int(self._cells.max()) + 1, len(self.nodes))), list[_Trace]()
        for units, buffers, worth in zip(self._units, self._buffers, worths, strict=True):
            best, trace = _add_model(best, units, _shifted(best, buffers), worth)
            traces.append(trace)
        return float(best[self._cells, np.arange(len(self.nodes))].sum()), list(self._taken(traces))

    def _taken(self, traces: Sequence[_Trace]) -> Iterator[tuple[int, int, Ints, Ints]]:
        """Go back through the models and their layers."""
        cells, each = self._cells.copy(), np.arange(len(self.nodes))
        self.passes = np.zeros(len(each))
        for k in range(len(traces) - 1, -1, -1):
            trace, units = traces[k], self._units[k]
            ends, going = trace.ends[cells, each], np.zeros(len(each), dtype=bool)
            for layer in range(len(units) - 1, -1, -1):
                going |= ends == layer
                nodes = np.flatnonzero(going)
                if not len(nodes):
                    continue
                precisions = trace.precisions[layer, cells[nodes], nodes].astype(np.int64)
                yield k, layer, nodes, precisions
                cells[nodes] -= units[layer, precisions]
                begun = nodes[trace.begins[layer, cells[nodes], nodes] > 0]
                cells[begun] -= self._buffers[k][begun]
                self.passes[begun] += self._tenants[k].requests_per_second * self.pass_seconds[k][begun]
                going[begun] = False


def _add_model(best: Floats, units: Ints, before: Floats, worth: _Worth) -> tuple[Floats, _Trace]:
    """The least cost for each number of cells with at most one segment of one more model.

    Args:
        best: [cells + 1, N] without it.
        units: [L, P] cells of its layers.
        before: [cells + 1, N] without it, beside its buffers.
    """
    n_layers, shape = len(units), best.shape
    trace = _Trace(
        np.zeros((n_layers, *shape), dtype=np.uint8),
        np.zeros((n_layers, *shape), dtype=np.uint8),
        np.full(shape, -1, dtype=np.int16),
    )
    best, running = best.copy(), np.full(shape, np.inf)
    for layer in range(n_layers):
        beginning = before + worth.entering[:, layer]
        trace.begins[layer] = beginning < running
        source, running = np.minimum(beginning, running), np.full(shape, np.inf)
        for p in np.flatnonzero(units[layer] < shape[0]):
            held = int(units[layer, p])
            reached = source[: shape[0] - held] + worth.layers[layer, :, p]
            better = reached < running[held:]
            np.copyto(running[held:], reached, where=better)
            np.copyto(trace.precisions[layer, held:], np.uint8(p), where=better)
        ended = running + worth.leaving[:, layer + 1]
        better = ended < best
        np.copyto(best, ended, where=better)
        np.copyto(trace.ends, np.int16(layer), where=better)
    return best, trace


def _shifted(best: Floats, cells: Ints) -> Floats:
    """[cells + 1, N] with so many cells taken of each node; infinite where it has not so many."""
    numbers = np.arange(len(best))[:, None] - cells
    shifted = np.take_along_axis(best, np.maximum(numbers, 0), axis=0)
    return np.where(numbers >= 0, shifted, np.inf)
