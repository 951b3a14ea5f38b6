"""The program that a ladder is chosen by: one column of each choice, so that every limit is kept.

A column may be a whole pattern of a unit, or one option of one group in one run: it uses weight of some steps and of
the store, and adds to the cost of some steps.  PuLP would build the program anew for every column that is added, so
HiGHS is spoken to directly.

Weights are counted in shares of the largest limit and costs by what each step costs alone: both near one, so that the
solver's absolute tolerances mean the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lamella.planning.sharing.patterns import Prices
from lamella.planning.sharing.problem import SharedProblem

TIE_BREAKER = 0.005
"""Weight of the mean ratio beside what is made least: steps that do not decide should be good, too."""
OVERRUN = 100.0
"""Cost of a ratio beyond the one asked for: dear, but allowed, so that the program always has a solution."""
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Column:
    """What choosing this one of a choice's columns uses.

    Attributes:
        choice: number of the choice that it belongs to.
        weights, costs: of each step.
        joint_weight: of the store.
    """

    choice: int
    weights: tuple[int, ...]
    costs: tuple[int, ...]
    joint_weight: int


@dataclass(frozen=True, slots=True)
class Relaxed:
    """Solution of the linear program.

    Attributes:
        value: of the objective.
        prices: what weights and costs are worth in it.
        worths: what the column of each choice costs at these prices.
        reduced_costs: of each column: by how much it is dearer than the best one of its choice.
    """

    value: float
    prices: Prices
    worths: tuple[float, ...]
    reduced_costs: tuple[float, ...]


class Program:
    """Rows: one column of each choice, the weight and the ratio of each step, the joint weight.

    HiGHS' column 0 is the worst ratio, or by how much it exceeds the one that was asked for; ours follow.
    """

    def __init__(self, problem: SharedProblem, n_choices: int) -> None:
        import highspy  # a tenth of a second, which only those pay who plan a ladder

        self._highspy, self._problem, self._n_choices = highspy, problem, n_choices
        self._references = problem.references()
        self._scale = 1 / max(problem.limits)
        self._has_joint_limit = problem.joint_limit is not None
        self._model: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        self._model.setOptionValue("output_flag", False)
        self._model.setOptionValue("threads", 1)
        self.columns: list[Column] = []
        self._add_rows()
        self._add_worst_ratio()

    def add(self, column: Column) -> None:
        """One more column: what it weighs and costs in each step, and that one column of its choice is taken."""
        rows, values = [column.choice], [1.0]
        for step, (weight, cost) in enumerate(zip(column.weights, column.costs, strict=True)):
            if weight or cost:
                rows += [self._weight_row(step), self._ratio_row(step)]
                values += [self._scale * weight, cost / self._references[step]]
        rows.append(self._joint_row)
        values.append(self._scale * column.joint_weight)
        ratios = (cost / reference for cost, reference in zip(column.costs, self._references, strict=True))
        price = TIE_BREAKER * math.fsum(ratios) / self._problem.n_steps
        price += 0.0 if self._has_joint_limit else self._scale * column.joint_weight
        self._model.addCol(price, 0.0, self._highspy.kHighsInf, len(rows), rows, values)
        self.columns.append(column)

    def relaxed(self) -> Relaxed:
        """Solve the linear program; every choice has a column."""
        self._model.run()
        solution = self._model.getSolution()
        duals = list(solution.row_dual)
        steps = range(self._problem.n_steps)
        joint = max(0.0, -duals[self._joint_row]) if self._has_joint_limit else 1.0
        mean_price = TIE_BREAKER / self._problem.n_steps
        prices = Prices(
            tuple(self._scale * max(0.0, -duals[self._weight_row(k)]) for k in steps),
            self._scale * joint,
            tuple((max(0.0, -duals[self._ratio_row(k)]) + mean_price) / self._references[k] for k in steps),
        )
        value = self._model.getInfo().objective_function_value
        return Relaxed(value, prices, tuple(duals[: self._n_choices]), tuple(list(solution.col_dual)[1:]))

    def bound_from(self, value: float) -> float:
        """What a lower bound on the objective says of the worst ratio, or of the joint weight."""
        if self._has_joint_limit:
            return value / (1 + TIE_BREAKER)  # the mean ratio is at most the worst
        return (value - TIE_BREAKER * self._problem.worst_ratio) / self._scale

    def choose(self, allowed: Sequence[int], gap: float, most_nodes: int) -> list[int] | None:
        """One column of each choice.

        Args:
            allowed: columns to choose from.
            gap: a choice proven to be within this share of the best one will do.
            most_nodes: of branch and bound; a count, not a time, so that equal questions get equal answers.

        Returns:
            The column of each choice; None if none were found within the limits.
        """
        is_allowed = set(allowed)
        for i in range(len(self.columns)):
            if i in is_allowed:
                self._model.changeColIntegrality(i + 1, self._highspy.HighsVarType.kInteger)
            else:
                self._model.changeColBounds(i + 1, 0.0, 0.0)
        self._model.setOptionValue("mip_rel_gap", gap)
        self._model.setOptionValue("mip_max_nodes", most_nodes)
        limits = self._weight_limits()
        tightened = dict(limits)
        for _ in range(_TRIES):
            self._model.run()
            chosen = self._chosen()
            used = self._used(chosen) if chosen else {}
            over = {row: used[row] - limit for row, limit in limits.items() if chosen and used[row] > limit}
            if not over:
                return chosen
            for row, excess in over.items():  # broken by what the solver tolerates: ask for as much less
                tightened[row] -= excess
                self._model.changeRowBounds(row, -self._highspy.kHighsInf, self._scale * tightened[row])
        return None

    def _chosen(self) -> list[int] | None:
        values = list(self._model.getSolution().col_value)[1:]
        found = {self.columns[i].choice: i for i, value in enumerate(values) if value > 0.5}
        return [found[choice] for choice in range(self._n_choices)] if len(found) == self._n_choices else None

    def _used(self, chosen: Sequence[int]) -> dict[int, int]:
        columns = [self.columns[i] for i in chosen]
        used = {self._weight_row(k): sum(c.weights[k] for c in columns) for k in range(self._problem.n_steps)}
        return used | {self._joint_row: sum(c.joint_weight for c in columns)}

    def _weight_limits(self) -> dict[int, int]:
        limits = {self._weight_row(k): limit for k, limit in enumerate(self._problem.limits)}
        return limits if self._problem.joint_limit is None else limits | {self._joint_row: self._problem.joint_limit}

    def _add_rows(self) -> None:
        infinity = self._highspy.kHighsInf
        ratio = 0.0 if self._has_joint_limit else self._problem.worst_ratio
        joint = infinity if self._problem.joint_limit is None else self._scale * self._problem.joint_limit
        for low, high in (
            *((1.0, 1.0) for _ in range(self._n_choices)),
            *((-infinity, self._scale * limit) for limit in self._problem.limits),
            *((-infinity, ratio) for _ in self._problem.limits),
            (-infinity, joint),
        ):
            self._model.addRow(low, high, 0, [], [])

    def _add_worst_ratio(self) -> None:
        rows = [self._ratio_row(k) for k in range(self._problem.n_steps)]
        price = 1.0 if self._has_joint_limit else OVERRUN
        self._model.addCol(price, 0.0, self._highspy.kHighsInf, len(rows), rows, [-1.0] * len(rows))

    def _weight_row(self, step: int) -> int:
        return self._n_choices + step

    def _ratio_row(self, step: int) -> int:
        return self._n_choices + self._problem.n_steps + step

    @property
    def _joint_row(self) -> int:
        return self._n_choices + 2 * self._problem.n_steps
