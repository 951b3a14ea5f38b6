"""Rows that a step is filled up with, where more take less time.

On processors ggml multiplies repacked weights four rows at a time and what is left over row by row
(``forward_mul_mat`` of ggml-cpu/repack.cpp), and mapped K-quants in tiles from 8 rows on: a step of 7 streams can take
a third longer than one of 8 (docs/log.md).  A row that nobody asked for, of a sequence that nobody runs, then makes the
step shorter.  Whether it does depends on processor, types and model, so nothing is assumed: both are tried and timed.

filling = Filling()
n_rows = filling.rows("int4", 7)      # 7 or 8
filling.saw("int4", n_rows, seconds)
"""

from __future__ import annotations

from collections import deque
from statistics import median

AT_ONCE = 4
"""Rows that ggml's products take together."""
LEAST_ROWS = 5
"""Fewer streams are not filled up: up to four rows by themselves cost no more than four together."""
TRIES = 3
"""Steps of each size before one is preferred; their median counts, and then that of the last ``N_KEPT``."""
N_KEPT = 5
WORTH = 0.97
"""A step is filled up where that takes at most this share of the time."""
PROBE_EVERY, PROBES = 64, 2
"""Of so many steps so many are of the size that is not preferred: streams become longer, and the machine busier."""


class Filling:
    """Times of steps that only wrote, by variant and rows, and what they say."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, int], deque[float]] = {}
        self._n_asked = 0

    def rows(self, variant: str, n_streams: int) -> int:
        """Rows that the next step should have: ``n_streams`` or the next multiple of ``AT_ONCE``."""
        full = -(-n_streams // AT_ONCE) * AT_ONCE
        if n_streams == full or n_streams < LEAST_ROWS:
            return n_streams
        for n_rows in (full, n_streams):
            if len(self._of(variant, n_rows)) < TRIES:
                return n_rows
        is_worth_it = median(self._of(variant, full)) <= WORTH * median(self._of(variant, n_streams))
        better, other = (full, n_streams) if is_worth_it else (n_streams, full)
        self._n_asked += 1
        return other if self._n_asked % PROBE_EVERY < PROBES else better

    def saw(self, variant: str, n_rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        self._of(variant, n_rows).append(seconds)

    def _of(self, variant: str, n_rows: int) -> deque[float]:
        return self._seconds.setdefault((variant, n_rows), deque(maxlen=N_KEPT))
