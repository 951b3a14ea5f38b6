"""The price on loss at which the best route just keeps the loss budget, and the bound that it gives.

For a price, the least cost + price * (loss - budget) over all placements is a lower bound on the objective (Lagrange).
As a function of the price it is concave, and a relaxed solution's loss - budget is its slope.  The search keeps a price
whose solution loses too much and one whose solution does not, and goes on where their two tangents meet (Handler, Zang
1980).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lamella.planning.placement.arrays import Route
from lamella.planning.placement.segments import SegmentTable

MOST_RAISES = 24
"""Of the price, by a factor of 4 each, until the budget is kept."""


@dataclass(frozen=True, slots=True)
class Priced:
    """The best relaxed solution at a price.

    Attributes:
        bound: on the objective of every placement (of those the table and the routes speak of).
        excess_loss: of the relaxed solution, beyond the budget.
    """

    price: float
    bound: float
    excess_loss: float
    route: Route
    table: SegmentTable


Evaluate = Callable[[float], Priced | None]
"""None where no route holds all layers, whatever the price."""


def search_price(
    evaluate: Evaluate, first: float, rounds: int, enough: Callable[[], bool] = lambda: False
) -> list[Priced]:
    """Evaluate prices around the best one; all solutions seen, in order.

    The last rounds are the nearest.  Where even the largest price loses too much, the last solution shows it; where
    nothing holds all layers, the list is empty.

    Args:
        first: price above 0 to begin with.
        rounds: of the search between two prices.
        enough: asked before each evaluation whether it is still wanted.
    """
    start = evaluate(first)
    if start is None:
        return []
    seen = [start]
    low, high = _bracket(evaluate, seen, enough)
    for _ in range(rounds if low and high else 0):
        assert low is not None
        assert high is not None
        price = _meeting(low, high)
        if enough() or not low.price < price < high.price:
            break
        middle = evaluate(price)
        assert middle is not None
        seen.append(middle)
        if middle.excess_loss > 0:
            low = middle
        else:
            high = middle
    return seen


def _bracket(evaluate: Evaluate, seen: list[Priced], enough: Callable[[], bool]) -> tuple[Priced | None, Priced | None]:
    """A price that is too low and one that is not; None where there is none."""
    low: Priced | None = None
    high: Priced | None = None
    at = seen[0]
    for _ in range(MOST_RAISES):
        if at.excess_loss > 0:
            low = at
        else:
            high = at
        if enough() or (low and high) or (high and high.price == 0):
            break
        price = low.price * 4 if low else at.price / 4 if len(seen) < MOST_RAISES // 2 else 0.0
        found = evaluate(price)
        assert found is not None
        at = found
        seen.append(at)
    return low, high


def _meeting(low: Priced, high: Priced) -> float:
    """Where the tangents at two prices meet."""
    at_low = low.bound - low.price * low.excess_loss
    at_high = high.bound - high.price * high.excess_loss
    return (at_high - at_low) / (low.excess_loss - high.excess_loss)
