"""Prices on what models share, and the bound that they give.

With a price on a node's memory and one on its time, models no longer meet: each is placed alone, paying for what it
takes.  What all pay, less the price of all there is, bounds every choice of placements from below (Lagrange).  Prices
rise where more is asked than there is and fall where less is: subgradient steps of Polyak's length (1969).

Each model's own part is relaxed too: its loss budget by a price, its precisions to shares, and a node may have several
of its segments (``routes.best_with_reuse``).  That is quick, and holds for any number of nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from lamella.planning.placement.arrays import Arrays, Floats, Ints, to_arrays
from lamella.planning.placement.routes import best_with_reuse
from lamella.planning.placement.segments import relax, segment_table
from lamella.planning.placement.several.problem import SeveralProblem, Tenant
from lamella.planning.placement.solver import first_price

STEPS = 100
_MEMORY_PRICES = 12
"""Tried for each segment: many models on many nodes make many tables."""
_HOPE = 0.5
"""Share of the first bound by which it may rise at once."""
_PATIENCE = 6
"""Steps without a better bound until less is hoped for."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Prices.

    Attributes:
        memory: [N] of a byte.
        time: [N] of a share of the node's time.
    """

    memory: Floats
    time: Floats


@dataclass(frozen=True, slots=True)
class Dual:
    """The best prices found, and what they prove.

    Attributes:
        bound: on every choice of placements; infinite where some model cannot be placed at all.
    """

    bound: float
    prices: Shared


def charge(arrays: Arrays, prices: Shared, tenant: Tenant) -> Arrays:
    """A model's question with its costs weighted, and with what it pays for memory and time."""
    weight, rate = tenant.weight, tenant.requests_per_second
    paid = prices.memory[None, :, None] * arrays.n_bytes[:, None, :]
    busy = np.where(np.isfinite(arrays.seconds), arrays.seconds, 0.0) * (rate * prices.time)[None, :, None]
    opening = prices.memory * buffers_of(tenant) + rate * prices.time * pass_seconds_of(tenant)
    return replace(
        arrays,
        cost=weight * arrays.cost + np.where(np.isfinite(arrays.cost), paid + busy, 0.0),
        opening=weight * arrays.opening + opening,
        entering=weight * arrays.entering,
        leaving=weight * arrays.leaving,
        between=None if arrays.between is None else weight * arrays.between,
        constant=weight * arrays.constant,
    )


def buffers_of(tenant: Tenant) -> Ints:
    """[N] bytes that a node's buffers take for each model on it."""
    return np.array([node.buffer_bytes for node in tenant.problem.cluster.nodes], dtype=np.int64)


def pass_seconds_of(tenant: Tenant) -> Floats:
    """[N] seconds that a request takes on a node beside its layers."""
    return np.array([tenant.problem.pass_seconds(node) for node in tenant.problem.cluster.nodes])


def find_prices(problem: SeveralProblem, known: float = math.inf, steps: int = STEPS) -> Dual:
    """Prices that bound the objective well.

    Args:
        known: objective of known placements, which no bound is above.
    """
    state = _State(problem)
    best, at_best = Dual(-np.inf, state.prices()), state.worth
    hope, waited = 0.0, 0
    for _ in range(steps):
        bound, excess = state.evaluate()
        if not np.isfinite(bound):
            return Dual(np.inf, state.prices())
        waited += 1
        if bound > best.bound:
            best, at_best, waited = Dual(bound, state.prices()), state.worth, 0
        hope = hope or _HOPE * abs(bound)
        if waited >= _PATIENCE:
            hope, waited, state.worth = hope / 2, 0, at_best
        excess[(state.worth == 0) & (excess < 0)] = 0.0
        length = float(excess @ excess)
        if length == 0 or best.bound >= known:
            break
        state.worth = np.maximum(0.0, state.worth + (min(best.bound + hope, known) - bound) / length * excess)
    return best


class _State:
    """Multipliers: worth of all of a node's memory, of all its time, and of each model's loss budget."""

    def __init__(self, problem: SeveralProblem) -> None:
        self._problem = problem
        self._arrays = [to_arrays(tenant.problem) for tenant in problem.tenants]
        nodes = problem.cluster.nodes
        self._memory = np.array([max(1.0, float(node.memory_bytes)) for node in nodes])
        self._buffers = np.array([float(node.buffer_bytes) for node in nodes])
        self._passes = [pass_seconds_of(tenant) for tenant in problem.tenants]
        self.worth = np.zeros(2 * len(nodes) + len(self._arrays))
        prices = [t.weight * first_price(a) * a.loss_budget for t, a in zip(problem.tenants, self._arrays, strict=True)]
        self.worth[2 * len(nodes) :] = np.array(prices) / 10

    def prices(self) -> Shared:
        n = len(self._memory)
        limit = self._problem.busy_limit or 1.0
        return Shared(self.worth[:n] / self._memory, self.worth[n : 2 * n] / limit)

    def evaluate(self) -> tuple[float, Floats]:
        """The bound, and by what share each limit is exceeded by the relaxed placements."""
        n, prices = len(self._memory), self.prices()
        used, busy, lost = np.zeros(n), np.zeros(n), np.ones(len(self._arrays))
        bound = -float(self.worth.sum())
        for k, (tenant, arrays) in enumerate(zip(self._problem.tenants, self._arrays, strict=True)):
            loss_worth, budget = float(self.worth[2 * n + k]), arrays.loss_budget
            price = loss_worth / budget if budget > 0 else loss_worth
            charged = charge(arrays, prices, tenant)
            table = segment_table(charged, price, _MEMORY_PRICES)
            found = best_with_reuse(table.bound)
            if found is None:
                return np.inf, np.zeros_like(self.worth)
            bound += found[0] + charged.constant + (0.0 if budget > 0 else loss_worth)
            loss = 0.0
            for arc in found[1]:
                relaxed = relax(charged, arc, table)
                layers = np.arange(arc.first, arc.end)
                used[arc.node] += arrays.n_bytes[layers, relaxed.picks].sum() + self._buffers[arc.node]
                seconds = arrays.seconds[layers, arc.node, relaxed.picks].sum() + self._passes[k][arc.node]
                busy[arc.node] += tenant.requests_per_second * seconds
                loss += relaxed.loss
            lost[k] = loss / budget if budget > 0 else loss + 1
        limit = self._problem.busy_limit or 1.0
        return bound, np.concatenate([used / self._memory - 1, busy / limit - 1, lost - 1])
