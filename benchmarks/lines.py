"""Lines that people compare: ours beside what we compare with; ``benchmarks/readers.py`` makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Document = Mapping[str, Any]
"""A record, as it was read."""

Verdict = Literal["better", "worse", "alike", "holds", "does not hold", ""]
ALIKE = 0.03
"""Ratios within this of 1 are called alike: single runs scatter by more."""


@dataclass(frozen=True)
class Line:
    """One finding.

    Attributes:
        what: what was measured.
        ours: with its unit.
        beside: what it is compared with, with its unit; empty where it stands alone.
        verdict: ours against that; empty where it stands alone.
        ratio: ours by theirs; None where there is no such number.
    """

    what: str
    ours: str
    beside: str = ""
    verdict: Verdict = ""
    ratio: float | None = None


Reader = Callable[[Document], Iterable[Line]]


def compared(what: str, ours: float, theirs: float, unit: str, *, rival: str, more_is_better: bool = False) -> Line:
    """A line of two numbers of one unit."""
    ratio = ours / theirs
    is_better = ratio > 1 if more_is_better else ratio < 1
    verdict: Verdict = "alike" if abs(ratio - 1) <= ALIKE else "better" if is_better else "worse"
    return Line(what, f"{number(ours)} {unit}".strip(), f"{rival}: {number(theirs)} {unit}".strip(), verdict, ratio)


def promised(what: str, found: str, holds: bool, promise: str) -> Line:
    """A line of a promise that is kept or not."""
    return Line(what, found, promise, "holds" if holds else "does not hold")


def number(value: float) -> str:
    """Three digits that mean something, thousands in full."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
