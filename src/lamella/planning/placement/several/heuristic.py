"""Many models on many nodes: one after another at prices, then a few again and again on what the others leave.

1. Prices on memory and time (``prices``) say what is scarce, and bound the objective.
2. Models are placed one after another, in some order, each on what is left (``quick``).  It pays the prices, so that it
   leaves scarce nodes to those who gain more by them.
3. A few models that meet on the same nodes are taken out and placed again, in another order, at shaken prices, with
   some nodes hidden; then each once more at true cost.  What is not much worse is gone on from (Dueck 1993: record to
   record travel).
4. Now and then an integer program chooses one for each model of all placements seen (``combining``), and another one
   the precisions of all of them on the routes that they have (``joint_bits``).
5. In the end two or three models at a time are placed anew together (``neighbourhood``): of all combinations of their
   routes, with precisions chosen for each one.

While a model has no place, the others pay several times the prices: they leave more room than is cheapest for them.

Nothing is drawn from a clock: equal questions get equal answers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lamella.core.errors import NoPlacement
from lamella.planning.placement.arrays import Floats, Ints, Route, to_placement
from lamella.planning.placement.result import account
from lamella.planning.placement.several.combining import combine, prices_of
from lamella.planning.placement.several.joint_bits import joint_bits
from lamella.planning.placement.several.neighbourhood import Effort, place_together
from lamella.planning.placement.several.prices import Dual, Shared, find_prices
from lamella.planning.placement.several.problem import (
    SeveralProblem,
    SeveralSolution,
    Tenant,
    check_several,
    several_violations,
    total,
)
from lamella.planning.placement.several.quick import Choice, QuickPlanner
from lamella.planning.placement.several.route_pools import Pool, pool_of, promising_routes

TRIES = 200
"""Of placing a few models again."""
GROUPS = 40
"""Of models placed anew together, where there are more than three."""
_FEW, _BEGINNINGS, _PHASES = 4, 5, 2
"""So many models are begun with several times, in a millisecond each; more are combined so many times."""
_GROUP = 4
"""Models placed again at once, at most."""
_ORDERS, _SHARES = 3, (1.0, 0.5, 0.0, 2.0)
"""Of models at first, and the shares of the prices that they pay while they are placed."""
_FRUGAL_SHARES = (2.0, 4.0, 8.0, 16.0)
"""The same while a model has no place."""
_SPREAD, _HIDDEN = 1.0, (0.0, 0.1, 0.3)
"""Of the lognormal factors that shake prices, and shares of the nodes that are hidden."""
_SLACK = 0.03
"""Share of the best cost by which the next choices may be worse, at first; it falls to nothing."""
_ROUNDS = 10
"""Of placing each model alone at prices of what was seen, before it is combined."""
_TOGETHER = 3
"""Models placed anew together, at most."""
_OF_ALL, _OF_SOME = Effort(routes=600, branches=100, programs=20), Effort(routes=100, branches=8, programs=4)
"""Where these are all the models, and where there are others."""
_HOPELESS = 0.8
"""Share of its cost that placing again at true cost may leave."""

_Choices = Mapping[int, Choice]
"""The placement of each model that has one."""


def place_several(problem: SeveralProblem, tries: int = TRIES, seed: int = 0) -> SeveralSolution:
    """Placements within all limits, good ones, and a bound.

    Args:
        tries: of placing a few models again.
        seed: of orders, groups, shaken prices and hidden nodes.

    Raises:
        InvalidRequest: the question has no meaning.
        NoPlacement: the models do not fit together, or no way was found in which they do.
    """
    check_several(problem)
    dual = find_prices(problem)
    if dual.bound == math.inf:
        raise NoPlacement("one of the models fits on no nodes at all, even alone")
    search = _Search(problem, dual.prices, random.Random(seed))
    search.begin()
    search.improve(tries)
    choices = search.polished()
    if len(choices) < len(problem.tenants):
        raise NoPlacement(
            f"no way was found to fit {len(problem.tenants)} models on {len(problem.cluster.nodes)} nodes together: "
            f"{len(choices)} at most"
        )
    return _solution(problem, choices, dual)


def _solution(problem: SeveralProblem, choices: _Choices, dual: Dual) -> SeveralSolution:
    chosen = [(tenant.problem, choices[k]) for k, tenant in enumerate(problem.tenants)]
    placements = tuple(to_placement(question, choice.route, choice.picks) for question, choice in chosen)
    broken = several_violations(problem, placements)
    assert not broken, broken
    accounts = tuple(account(t.problem, p) for t, p in zip(problem.tenants, placements, strict=True))
    objective = total(problem, accounts)
    return SeveralSolution(placements, accounts, objective, min(dual.bound, objective), "heuristic")


class _Search:
    """The best choices so far, and all that were seen."""

    def __init__(self, problem: SeveralProblem, prices: Shared, draw: random.Random) -> None:
        self._tenants, self._prices, self._draw = problem.tenants, prices, draw
        self._planners = [QuickPlanner(tenant) for tenant in problem.tenants]
        self._memory = np.array([node.memory_bytes for node in problem.cluster.nodes], dtype=np.int64)
        self._busy = np.full(len(self._memory), problem.busy_limit)
        self._seen: list[dict[tuple[Route, tuple[int, ...]], Choice]] = [{} for _ in problem.tenants]
        self._best: _Choices = {}
        self._wanted: list[Ints] = []

    def begin(self) -> None:
        """Place them one after another, in some orders."""
        alone = [self._place(k, {}) for k in range(len(self._tenants))]
        self._wanted = [np.flatnonzero(c.n_bytes) if c else np.array([], dtype=np.int64) for c in alone]
        self._best = min(self._starts(_SHARES), key=_worth)
        if not self._is_complete(self._best):
            self._best = min((*self._starts(_FRUGAL_SHARES), self._best), key=_worth)

    def improve(self, tries: int) -> None:
        """Place a few models again, many times, and combine what was seen; few models are begun with anew between."""
        few = len(self._tenants) <= _FEW
        phases = _BEGINNINGS if few else _PHASES
        for phase in range(phases):
            self._travel(self._fresh() if phase and few else self._best, math.ceil(tries / phases))
            self._combine(self._generate(_ROUNDS))
            self._share_out()
        if len(self._tenants) > _TOGETHER:
            self._place_groups(GROUPS)
        elif len(self._tenants) > 1:
            while self._place_together(range(len(self._tenants)), _OF_ALL):  # what is found leaves less to look at
                pass

    def _generate(self, rounds: int) -> Shared:
        """Placements that are cheap at the prices at which those seen would be mixed; returns the last prices."""
        prices = self._prices
        for _ in range(rounds):
            mixing = prices_of({k: list(of.values()) for k, of in enumerate(self._seen)}, self._memory, self._busy)
            if mixing is None:
                break
            prices = mixing
            before = sum(map(len, self._seen))
            for k in range(len(self._tenants)):
                self._place(k, {}, prices)
            if sum(map(len, self._seen)) == before:
                break
        return prices

    def _starts(self, shares: Sequence[float]) -> Iterator[_Choices]:
        return (self._in_order(order, share) for order in self._orders() for share in shares)

    def _is_complete(self, choices: _Choices) -> bool:
        return len(choices) == len(self._tenants)

    def _travel(self, current: _Choices, tries: int) -> None:
        record = current
        for number in range(tries):
            tried = self._again(current, record)
            slack = _SLACK * (1 - number / tries)
            record = min(record, tried, key=_worth)
            current = tried if _worth(tried, 1 + slack) < _worth(record) else current
        self._best = min(self._best, record, key=_worth)

    def _fresh(self) -> _Choices:
        order = self._draw.sample(range(len(self._tenants)), len(self._tenants))
        return self._in_order(order, self._draw.choice(_SHARES))

    def polished(self) -> _Choices:
        """The best choices, each with the best precisions for its route."""
        choices = dict(self._best)
        for k, choice in self._best.items():
            others = {other: placed for other, placed in choices.items() if other != k}
            choices[k] = self._planners[k].polish(choice, *self._left(others))
        return choices

    def _combine(self, prices: Shared) -> None:
        """One placement of each model, of all that were seen, the most promising ones at these prices."""
        seen = {k: list(of_model.values()) for k, of_model in enumerate(self._seen)}
        found = combine(seen, self._best, self._memory, self._busy, prices)
        self._best = min(found, self._best, key=_worth)

    def _share_out(self) -> None:
        """The best precisions of all models on the routes that they have."""
        cost = sum(choice.cost for choice in self._best.values())
        routes = {k: choice.route for k, choice in self._best.items()}
        found = joint_bits(dict(enumerate(self._planners)), routes, self._memory, self._busy, cost)
        if found is not None:
            self._best = {k: self._remembered(k, choice) for k, choice in found.items()}

    def _place_groups(self, groups: int) -> None:
        """Place three models anew together, again and again, and then choose the precisions of all."""
        tried = set[tuple[int, ...]]()
        for _ in range(groups):
            group = tuple(sorted(self._group(self._best, (_TOGETHER - 1, _TOGETHER - 1))))
            if len(group) > 1 and group not in tried:
                tried = set() if self._place_together(group, _OF_SOME) else tried | {group}
        self._share_out()

    def _place_together(self, group: Sequence[int], effort: Effort) -> bool:
        """Whether placements of these models were found that cost less together."""
        others = {k: choice for k, choice in self._best.items() if k not in group}
        memory, busy = self._left(others)
        planners, pools = {k: self._planners[k] for k in group}, dict[int, Pool]()
        for k in group:
            promising = promising_routes(planners[k].segments(memory, busy, self._prices), effort.routes)
            routes = list(dict.fromkeys((*([self._best[k].route] if k in self._best else []), *promising)))
            if not routes:
                return False
            pools[k] = pool_of(planners[k], routes)
        now = [self._best[k].cost for k in group if k in self._best]
        cost = sum(now) if len(now) == len(group) else math.inf
        found = place_together(planners, pools, memory, busy, cost, effort)
        if found is not None:
            self._best = {**others, **{k: self._remembered(k, choice) for k, choice in found.items()}}
        return found is not None

    def _orders(self) -> Iterator[Sequence[int]]:
        """By size, by how much their time counts, and at random."""
        numbers = list(range(len(self._tenants)))
        sizes = [_least_bytes(tenant) for tenant in self._tenants]
        yield sorted(numbers, key=lambda k: -sizes[k])
        yield sorted(numbers, key=lambda k: -self._tenants[k].weight * sizes[k])
        for _ in range(_ORDERS - 2):
            yield self._draw.sample(numbers, len(numbers))

    def _in_order(self, order: Sequence[int], share: float) -> _Choices:
        choices: dict[int, Choice] = {}
        for k in order:
            self._put(choices, k, self._place(k, choices, _scaled(self._prices, share)))
        self._once_more(choices, order)
        return choices

    def _again(self, before: _Choices, record: _Choices) -> _Choices:
        """Place a group again on what the others leave."""
        group = self._group(before)
        shares = _SHARES if self._is_complete(before) else _FRUGAL_SHARES
        choices = {k: c for k, c in before.items() if k not in group}
        for k in group if len(group) > 1 else ():
            self._put(choices, k, self._place(k, choices, self._shaken(self._prices, shares), self._hidden()))
        if len(group) == 1 or _worth(choices, 1 / _HOPELESS) < _worth(record):
            self._once_more(choices, group)
        return choices

    def _group(self, choices: _Choices, others: tuple[int, int] = (0, _GROUP - 1)) -> list[int]:
        """A model, and some of those that are where it would like to be; a model without a place comes first."""
        draw, numbers = self._draw, range(len(self._tenants))
        first = draw.choice([k for k in numbers if k not in choices] or numbers)
        placed = [k for k in choices if k != first]
        there = [k for k in placed if choices[k].n_bytes[self._wanted[first]].any()]
        elsewhere = [k for k in placed if k not in there]
        size = draw.randint(*others)
        group = [first, *draw.sample(there, min(size, len(there)))]
        group += draw.sample(elsewhere, min(len(elsewhere), size + 1 - len(group)))
        draw.shuffle(group)
        return group

    def _once_more(self, choices: dict[int, Choice], order: Sequence[int]) -> None:
        """Place each again at true cost; only those without a place where there are any, who need what is left."""
        for k in [k for k in order if k not in choices] or order:
            self._put(choices, k, self._place(k, choices))

    @staticmethod
    def _put(choices: dict[int, Choice], number: int, found: Choice | None) -> None:
        if found is not None and (number not in choices or found.cost < choices[number].cost):
            choices[number] = found

    def _place(
        self, number: int, others: _Choices, prices: Shared | None = None, hidden: Ints | None = None
    ) -> Choice | None:
        """A model on what the others leave, at prices or at true cost, beside hidden nodes."""
        memory, busy = self._left({k: choice for k, choice in others.items() if k != number})
        if hidden is not None:
            memory[hidden] = 0
        found = self._planners[number].place(memory, busy, prices)
        return found and self._remembered(number, found)

    def _remembered(self, number: int, choice: Choice) -> Choice:
        return self._seen[number].setdefault((choice.route, choice.picks), choice)

    def _left(self, choices: _Choices) -> tuple[Ints, Floats]:
        """Memory and time that models leave."""
        memory, busy = self._memory.copy(), self._busy.copy()
        for choice in choices.values():
            memory -= choice.n_bytes
            busy -= choice.busy
        return memory, busy

    def _shaken(self, prices: Shared, shares: Sequence[float]) -> Shared:
        """Each node's prices times a random factor: other nodes are spared each time."""
        factors = np.array([self._draw.lognormvariate(0, _SPREAD) for _ in self._memory])
        return _scaled(prices, self._draw.choice(shares) * factors)

    def _hidden(self) -> Ints:
        share = self._draw.choice(_HIDDEN)
        return np.array([n for n in range(len(self._memory)) if self._draw.random() < share], dtype=np.int64)


def _scaled(prices: Shared, share: float | Floats) -> Shared:
    return Shared(prices.memory * share, prices.time * share)


def _worth(choices: _Choices, divisor: float = 1.0) -> tuple[int, float]:
    """Less is better: first that more models are placed, then what they cost."""
    return -len(choices), math.fsum(choice.cost for choice in choices.values()) / divisor


def _least_bytes(tenant: Tenant) -> int:
    problem = tenant.problem
    return sum(min(problem.layer_bytes(i, p) for p in layer.options) for i, layer in enumerate(problem.layers))
