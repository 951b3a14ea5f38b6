"""Mixed integer programs as lists of rows, solved by HiGHS.

PuLP writes the reference program (``program``), where reading matters.  Here thousands of columns come from arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lamella.planning.placement.arrays import Floats

TOLERANCE = 1e-9
"""Of rows, which are scaled so that limits are near 1, and of whole numbers."""


@dataclass(slots=True)
class Rows:
    """Constraints low <= sum of values * variables <= high, one after another."""

    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, low: float, high: float, terms: Iterable[tuple[int, float]]) -> int:
        """Add a row of (variable, value); returns its number."""
        for column, value in terms:
            self.columns.append(column)
            self.values.append(value)
        self.lows.append(low)
        self.highs.append(high)
        self.starts.append(len(self.columns))
        return len(self.lows) - 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What HiGHS found.

    Attributes:
        values: of the variables; None if no choice was found.
        bound: no choice costs less; infinite where there is proven to be none.
    """

    values: Floats | None
    bound: float


def row_prices(costs: Floats, rows: Rows) -> Floats | None:
    """What one more of each row's limit would save, were the variables shares; None where there is no choice."""
    import highspy

    model: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    model.setOptionValue("output_flag", False)  # an option's value
    model.setOptionValue("threads", 1)
    program = _program(highspy, costs, rows)
    program.integrality_ = []
    model.passModel(program)
    model.run()
    if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    return -np.array(model.getSolution().row_dual)


def solve(costs: Floats, rows: Rows, *, gap: float, most_nodes: int, cutoff: float = np.inf) -> Answer:
    """Minimise over binary variables.

    Args:
        gap: a choice proven to be within this share of the best will do.
        most_nodes: of branch and bound; a count, not a time, so that equal questions get equal answers.
        cutoff: choices that cost more are not looked for; the bound is then that of the others, or infinite.
    """
    import highspy  # a tenth of a second, which only those pay who ask for it

    model: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    for name, value in {
        "output_flag": False,
        "threads": 1,  # HiGHS keeps one pool of threads for the process, of the size first asked for
        "mip_rel_gap": gap,
        "mip_abs_gap": 0.0,
        "objective_bound": cutoff,
        "mip_max_nodes": most_nodes,
        "mip_feasibility_tolerance": TOLERANCE,
        "primal_feasibility_tolerance": TOLERANCE,
    }.items():
        model.setOptionValue(name, value)
    model.passModel(_program(highspy, costs, rows))
    model.run()
    return _answer(highspy, model)


def _program(highspy: Any, costs: Floats, rows: Rows) -> Any:
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(costs), len(rows.lows)
    program.col_cost_ = costs
    program.col_lower_, program.col_upper_ = np.zeros(len(costs)), np.ones(len(costs))
    program.row_lower_, program.row_upper_ = np.array(rows.lows), np.array(rows.highs)
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_ = np.array(rows.starts, dtype=np.int32)
    program.a_matrix_.index_ = np.array(rows.columns, dtype=np.int32)
    program.a_matrix_.value_ = np.array(rows.values)
    program.integrality_ = [highspy.HighsVarType.kInteger] * len(costs)
    return program


def _answer(highspy: Any, model: Any) -> Answer:
    status = model.getModelStatus()
    if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
        return Answer(None, np.inf)
    info = model.getInfo()
    found = info.primal_solution_status == highspy.kSolutionStatusFeasible
    values = np.array(model.getSolution().col_value) if found else None
    return Answer(values, float(info.mip_dual_bound))
