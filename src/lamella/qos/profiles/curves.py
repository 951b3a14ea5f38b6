"""A line through measured points: straight between them, and tested by leaving each out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from statistics import fmean


class Curve:
    """Straight between points; level before the first, on with the last slope after the last.

    Level before the first because even the smallest batch reads all weights once.
    """

    __slots__ = ("_xs", "_ys")

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        """Points of one x are one point at their mean; there is at least one point."""
        by_x: dict[float, list[float]] = {}
        for x, y in points:
            by_x.setdefault(x, []).append(y)
        if not by_x:
            raise ValueError("a curve needs at least one point")
        self._xs = sorted(by_x)
        self._ys = [fmean(by_x[x]) for x in self._xs]

    def at(self, x: float) -> float:
        """The value at ``x``."""
        xs, ys = self._xs, self._ys
        if len(xs) == 1 or x <= xs[0]:
            return ys[0]
        right = min(bisect_right(xs, x), len(xs) - 1)
        left = right - 1
        slope = (ys[right] - ys[left]) / (xs[right] - xs[left])
        if x > xs[-1]:
            return ys[-1] + max(0.0, slope) * (x - xs[-1])
        return ys[left] + slope * (x - xs[left])

    def left_out_errors(self) -> list[float]:
        """For each inner point: how far the curve without it is from it, as a share of its value."""
        points = list(zip(self._xs, self._ys, strict=True))
        return [
            Curve(points[:i] + points[i + 1 :]).at(x) / y - 1
            for i, (x, y) in enumerate(points)
            if 0 < i < len(points) - 1
        ]


def slope_through_zero(pairs: Iterable[tuple[float, float]]) -> float:
    """Least-squares slope of y = a x, not below 0; 0 without a point that says anything."""
    points = list(pairs)
    squares = sum(x * x for x, _ in points)
    return max(0.0, sum(x * y for x, y in points) / squares) if squares else 0.0
