"""Whether two greedy answers are the same, and where they are not, whether rounding can be blamed.

llama.cpp's flash attention on the CPU sums a sequence's cells in the order in which they lie in the cache, in 16 bits,
and activations are then rounded to 8 bits.  In a cache that sequences share a token may come to lie before its
predecessors, and SmolLM2's log-probabilities then move by 0.05 to 0.15 nats (docs/log.md).  So a difference is judged
by the margin, the difference of log-probability between the two likeliest tokens, where it began; and a record must
hold a control beside it: how many answers differ between two runs that nobody disturbed, and at which margins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.clients import Stream

NEAR_TIE = 1e-3
"""Margin, in nats, below which a difference is surely rounding."""
FIELDS = {"logprobs": 2}
"""What requests must ask for that are to be compared."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Two answers that part.

    Attributes:
        at: number of the first token that differs.
        margin: in nats, there, in the answer that was expected; infinite where one of them is cut short.
    """

    at: int
    margin: float

    @property
    def is_near_tie(self) -> bool:
        return self.margin < NEAR_TIE


def difference(expected: Stream, found: Stream) -> Difference | None:
    """Where two answers part; None if they are the same."""
    for i, (a, b) in enumerate(zip(expected.pieces, found.pieces, strict=False)):
        if a.token != b.token:
            return Difference(i, a.margin)
    shorter, longer = sorted((len(expected.pieces), len(found.pieces)))
    return Difference(shorter, float("inf")) if shorter != longer else None


def compare(expected: Sequence[Stream], found: Sequence[Stream]) -> dict[str, Any]:
    """The figures of a record: answers, how many differ, of them near-ties, and the margins."""
    differences = [d for a, b in zip(expected, found, strict=True) if (d := difference(a, b))]
    return {
        "answers": len(expected),
        "differing": len(differences),
        "near_ties": sum(d.is_near_tie for d in differences),
        "margins": sorted(round(d.margin, 6) for d in differences),
        "after_tokens": [d.at for d in differences],
    }


def merged(comparisons: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several comparisons together."""
    counts = {key: sum(c[key] for c in comparisons) for key in ("answers", "differing", "near_ties")}
    lists = {key: sorted(v for c in comparisons for v in c[key]) for key in ("margins", "after_tokens")}
    return {**counts, **lists}
