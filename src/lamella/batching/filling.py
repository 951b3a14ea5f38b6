"""Rows that a step is filled up with, where more take less time.

On processors ggml multiplies repacked weights four rows at a time and what is left over row by row
(``forward_mul_mat`` of ggml-cpu/repack.cpp), and mapped K-quants in tiles from 8 rows on: a step of 7 streams can take
a third longer than one of 8 (docs/log.md).  A row that nobody asked for, of a sequence that nobody runs, then makes the
step shorter.  Whether it does depends on processor, types and model, so nothing is assumed: both are tried and timed.

filling = Filling()
n_rows = filling.rows("int4", 7)      # 7 or 8
filling.saw("int4", 7, n_rows, seconds)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

AT_ONCE = 4
"""Rows that ggml's products take together."""
LEAST_ROWS = 5
"""Fewer streams are not filled up: up to four rows by themselves cost no more than four together."""
TRIES, N_KEPT = 4, 6
"""Comparisons of both sizes before one is preferred, and how many of the last ones count: their median."""
WORTH = 0.97
"""A step is filled up where that takes at most this share of the time."""
RUN, PROBE_EVERY = 3, 64
"""Of so many steps so many are of the size that is not preferred: streams become longer, and the machine busier."""


@dataclass(slots=True)
class _Seen:
    """Steps of one variant and number of streams.

    Attributes:
        last: seconds of the last step, by whether it was filled up; of this uninterrupted run of steps.
        shares: a step that was filled up beside one before or after it that was not.
    """

    last: dict[bool, float] = field(default_factory=dict)
    shares: deque[float] = field(default_factory=lambda: deque(maxlen=N_KEPT))


class Filling:
    """What steps that only wrote took, filled up and not.

    Only neighbours in time are compared: a machine's speed changes with what others do there.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], _Seen] = {}
        self._before: tuple[str, int, int] | None = None
        self._n_asked = self._n_alike = 0

    def rows(self, variant: str, n_streams: int) -> int:
        """Rows that the next step should have: ``n_streams`` or the next multiple of ``AT_ONCE``."""
        full = -(-n_streams // AT_ONCE) * AT_ONCE
        if n_streams == full or n_streams < LEAST_ROWS:
            return n_streams
        shares = self._of(variant, n_streams).shares
        self._n_asked += 1
        if len(shares) < TRIES:
            is_filled = self._n_asked % (2 * RUN) < RUN
        else:
            is_filled = (median(shares) <= WORTH) != (self._n_asked % PROBE_EVERY < RUN)
        return full if is_filled else n_streams

    def saw(self, variant: str, n_streams: int, n_rows: int, seconds: float) -> None:
        """A step took so long.  The first of its size does not count: llama.cpp plans its graph anew."""
        seen = self._of(variant, n_streams)
        if self._before is None or self._before[:2] != (variant, n_streams):
            seen.last.clear()
        self._n_alike = self._n_alike + 1 if self._before == (variant, n_streams, n_rows) else 0
        self._before = variant, n_streams, n_rows
        if not self._n_alike:
            return
        is_filled = n_rows > n_streams
        seen.last[is_filled] = seconds
        if self._n_alike == 1 and len(seen.last) == 2:
            seen.shares.append(seen.last[True] / seen.last[False])

    def saw_other(self) -> None:
        """A step that also read a prompt."""
        self._before = None

    def _of(self, variant: str, n_streams: int) -> _Seen:
        return self._seen.setdefault((variant, n_streams), _Seen())
