"""Which points of a variant are measured."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.core.errors import InvalidRequest
from lamella.qos.profiles.documents import EngineShape


@dataclass(frozen=True, slots=True)
class Points:
    """Lengths, batches and repeats.

    Attributes:
        prompts: tokens of prompts alone.
        sequences: streams that write together, at depth ``shallow``; each number up to 8, because products go by fours
            and a step of 7 can take longer than one of 8.
        shallow, deep: tokens in the cache of each; ``deep`` is measured for one stream and for all.
        mixed: (streams, prompt tokens) of a prompt that is read while others write.
        n_steps: of which the median is a step's time.
        repeats: of everything else, of which the median counts.
    """

    prompts: tuple[int, ...] = (16, 64, 128, 256, 512, 1024)
    sequences: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)
    shallow: int = 64
    deep: int = 512
    mixed: tuple[tuple[int, int], ...] = ((1, 128), (4, 64), (4, 256))
    n_steps: int = 16
    repeats: int = 3

    def within(self, shape: EngineShape) -> Points:
        """Those that an engine can be asked for, with its most sequences added.

        Streams write on while the prompts of the others are read, so that each needs more cells than its depth; where
        cells are shared, all have to find room in them together.

        Raises:
            InvalidRequest: its context, or what each sequence has of the shared cells, is too small for the fewest.
        """
        most, slack = shape.n_sequences, self.n_steps + 8
        room = shape.n_ctx - slack
        together = min(room, shape.n_cells // most - slack - self.n_steps) if shape.n_cells else room
        if together <= self.shallow or not any(p <= room for p in self.prompts):
            cells = f" and {shape.n_cells} cells for {most} sequences" if shape.n_cells else ""
            raise InvalidRequest(
                f"a context of {shape.n_ctx} tokens{cells} is too small to measure in; take at least 128 for each"
            )
        return Points(
            prompts=tuple(p for p in self.prompts if p <= room),
            sequences=tuple(sorted({n for n in (*self.sequences, most) if n <= most})),
            shallow=self.shallow,
            deep=min(self.deep, together),
            mixed=tuple((n, m) for n, m in self.mixed if n < most and m <= room and self._fits(n, m, shape)),
            n_steps=self.n_steps,
            repeats=self.repeats,
        )

    def _fits(self, n_streams: int, n_prompt: int, shape: EngineShape) -> bool:
        """Whether shared cells hold streams that write and a prompt beside them."""
        return not shape.n_cells or n_streams * (self.shallow + 2 * self.n_steps + 8) + n_prompt <= shape.n_cells


QUICK = Points(
    prompts=(16, 128, 512), sequences=(1, 2, 4, 8), deep=256, mixed=((1, 64), (4, 128)), n_steps=8, repeats=1
)
"""Where nobody was promised anything yet: memory is as exact as ever, and times follow what the server observes."""
