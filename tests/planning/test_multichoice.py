"""The sweep against every choice there is: within the limit, proven bounds, monotone, and best where it says so."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.planning.exact import proven_bound, solve_exactly
from lamella.planning.multichoice import Answer, Hull, Problem, total
from lamella.planning.solve import best_within

OPTION = st.tuples(st.integers(0, 50), st.integers(-20, 50))
GROUPS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def problem(groups: list[list[tuple[int, int]]], limit: int) -> Problem:
    return Problem([[c for _, c in g] for g in groups], [[[w for w, _ in g] for g in groups]], [limit])


def least_cost(asked: Problem) -> int | None:
    """By trying everything."""
    all_picks = itertools.product(*(range(len(costs)) for costs in asked.costs))
    return min((asked.cost(picks) for picks in all_picks if asked.keeps(picks)), default=None)


def largest_step(asked: Problem) -> int:
    return max(max(costs) - min(costs) for costs in asked.costs)


def check(answer: Answer | None, asked: Problem) -> None:
    best = least_cost(asked)
    if best is None or answer is None:
        assert answer is None
        assert best is None
        return
    assert asked.keeps(answer.picks)
    assert answer.cost == asked.cost(answer.picks)
    assert answer.bound <= best <= answer.cost


@settings(deadline=None)
@given(GROUPS, st.integers(0, 300), st.integers(0, 4))
def test_the_answer_keeps_the_limit_and_the_bound_holds(
    groups: list[list[tuple[int, int]]], limit: int, depth: int
) -> None:
    asked, answer = problem(groups, limit), Hull(groups).best(limit, depth)
    check(answer, asked)
    assert answer is None or answer.cost - answer.bound <= largest_step(asked)


@settings(deadline=None)
@given(GROUPS, st.integers(0, 300))
def test_of_few_groups_the_best_is_found(groups: list[list[tuple[int, int]]], limit: int) -> None:
    answer = Hull(groups).best(limit)
    assert (answer and answer.cost) == least_cost(problem(groups, limit))
    assert answer is None or answer.bound == answer.cost


@settings(deadline=None)
@given(GROUPS, st.integers(0, 300), st.integers(0, 40), st.integers(0, 2))
def test_more_room_never_costs_more(groups: list[list[tuple[int, int]]], limit: int, more: int, depth: int) -> None:
    hull = Hull(groups)
    less, roomier = hull.best(limit, depth), hull.best(limit + more, depth)
    assert less is None or (roomier is not None and roomier.cost <= less.cost)


@settings(deadline=None)
@given(GROUPS)
def test_each_vertex_is_the_least_cost_of_its_weight(groups: list[list[tuple[int, int]]]) -> None:
    hull = Hull(groups)
    for weight, cost in hull.vertices():
        assert least_cost(problem(groups, weight)) == cost
        assert hull.best(weight, depth=0) is not None
        assert hull.has_vertex(weight, cost)
        assert not hull.has_vertex(weight, cost - 1)


def test_the_cost_above_the_bound_is_less_than_one_step() -> None:
    groups = [[(1, 10), (4, 0)], [(1, 9), (4, 1)], [(1, 8), (4, 2)]]
    answer = Hull(groups).best(10, depth=0)
    assert answer == Answer((1, 1, 0), 9, 9 - 2)  # a third of the last step, which saves 6, would fit


def test_options_off_the_hull_fill_what_is_left() -> None:
    groups = [[(0, 10), (1, 6), (2, 0)]]
    assert Hull(groups).best(1) == Answer((1,), 6, 6)
    answer = Hull(groups * 20).best(21, depth=1)
    assert answer is not None
    assert answer.cost == 96


def test_a_group_needs_options() -> None:
    with pytest.raises(ValueError, match="no options"):
        Hull([[(1, 1)], []])


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Several groups, options and limits."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    n_limits = draw(st.integers(0, 2))
    values = st.integers(0, 10**9)
    table = [[draw(st.lists(values, min_size=n, max_size=n)) for n in shape] for _ in range(1 + n_limits)]
    limits = draw(st.lists(st.integers(0, len(shape) * 10**9), min_size=n_limits, max_size=n_limits))
    return Problem(table[0], table[1:], limits)


@settings(deadline=None, max_examples=50)
@given(problems())
def test_the_integer_program_is_within_its_gap_of_the_best(asked: Problem) -> None:
    answer, best = solve_exactly(asked), least_cost(asked)
    check(answer, asked)
    assert answer is None or best is None or answer.cost - best <= 1e-5 * answer.cost + 1


@settings(deadline=None, max_examples=50)
@given(problems(), st.booleans())
def test_any_number_of_limits(asked: Problem, exact: bool) -> None:
    check(best_within(asked, exact=exact), asked)


def test_the_program_is_exact_to_the_byte() -> None:
    """Coefficients of a real model: a solver's tolerance on them must not buy a block."""
    block = 1_327_104
    uses = [[block * n for n in (16, 17, 18, 34)] for _ in range(20)]
    costs = [[1000 + g, 700 + g, 500 + g, 0] for g in range(20)]
    limit = 20 * 18 * block - 1
    answer = solve_exactly(Problem(costs, [uses], [limit]))
    assert answer is not None
    assert total(uses, answer.picks) <= limit


def test_the_solver_says_nothing() -> None:
    """A line of its own on stdout would break what ``--json`` prints; highspy 1.16.0 writes two once in a process."""
    code = """
from lamella.planning.exact import solve_exactly
from lamella.planning.multichoice import Problem
print(solve_exactly(Problem([[3, 1]], [[[0, 5]]], [5])).picks)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(1,)\n", "")


def test_where_nothing_was_proven_in_time_each_group_costs_at_least_its_cheapest_option() -> None:
    problem = Problem([[5, 3], [-2, 4]], [[[1, 2], [1, 2]]], [10])
    assert proven_bound(problem, cost=7, proven=-math.inf) == 1
    assert proven_bound(problem, cost=7, proven=-10.0) == 1
    assert proven_bound(problem, cost=7, proven=5.9) == 5
    assert proven_bound(problem, cost=7, proven=math.inf) == 1
    assert proven_bound(problem, cost=7, proven=7.2) == 7
