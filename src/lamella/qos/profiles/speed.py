"""How long a step of the engine takes: a model through the measured points of a variant.

A step costs what its tokens cost in one batch, plus attention, which grows with the tokens that each of them looks back
at:

    writing:  steps(n) + a * (tokens in the cache of all n - those at which steps(n) was measured)
    reading:  prompts(m) + b * m * depth        m tokens of a prompt after ``depth`` others
    both:     reading + writing - shared        one pass reads the weights once, but not in the best layout for both

``steps`` and ``prompts`` are lines through points; ``a``, ``b`` and ``shared`` are fitted.  ``SpeedModel.error`` says
how far off it is where a point is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lamella.qos.profiles.curves import Curve, slope_through_zero
from lamella.qos.profiles.documents import MixedPoint, PromptPoint, StepPoint, VariantProfile


@dataclass(frozen=True, slots=True)
class ModelError:
    """How far predictions are from points that were left out, as shares of the measured times.

    Attributes:
        mean, largest: of the absolute errors; 0 where there are too few points to leave one out.
        n_points: points that could be left out.
    """

    mean: float
    largest: float
    n_points: int


class SpeedModel:
    """Times of one variant, in seconds, on a machine that does nothing else."""

    __slots__ = ("_a", "_b", "_depth", "_n_batch", "_prompts", "_shared", "_steps", "_variant")

    def __init__(self, variant: VariantProfile, n_batch: int) -> None:
        """Fit the model.

        Args:
            n_batch: most tokens of a step.
        """
        self._variant, self._n_batch = variant, n_batch
        shallow = min(p.depth for p in variant.steps)
        level = [p for p in variant.steps if p.depth == shallow]
        self._depth = shallow
        self._steps = Curve((p.n_sequences, p.seconds) for p in level)
        self._a = self._fit_writing(variant.steps)
        self._prompts = Curve((p.n_tokens, p.seconds) for p in _short(variant.prompt, n_batch))
        self._b = self._fit_reading(variant.prompt)
        self._shared = 0.0
        self._shared = self._fit_shared(variant.mixed)

    def writing(self, n_sequences: int | float, depth: float) -> float:
        """A step in which sequences write one token each.

        Args:
            n_sequences: how many; predictions of load ask for parts of one.
            depth: tokens that each has in the cache, in the mean.
        """
        return max(1e-9, self._steps.at(n_sequences) + self._a * n_sequences * (depth - self._depth))

    def writing_growth(self, n_sequences: int) -> float:
        """How much longer each step is than the one before, because every sequence is one token longer."""
        return self._a * n_sequences

    def reading(self, n_tokens: int, depth: float = 0.0) -> float:
        """A step that reads so many tokens of a prompt, of which ``depth`` are in the cache."""
        return self._prompts.at(n_tokens) + self._b * n_tokens * depth

    def prompt(self, n_tokens: int) -> float:
        """A whole prompt alone, in as few steps as it takes."""
        whole, rest = divmod(n_tokens, self._n_batch)
        seconds = sum(self.reading(self._n_batch, i * self._n_batch) for i in range(whole))
        return seconds + (self.reading(rest, whole * self._n_batch) if rest else 0.0)

    def mixed(self, n_sequences: int | float, depth: float, n_tokens: int, prompt_depth: float = 0.0) -> float:
        """A step that writes and reads."""
        if not n_tokens:
            return self.writing(n_sequences, depth)
        read = self.reading(n_tokens, prompt_depth)
        if not n_sequences:
            return read
        write = self.writing(n_sequences, depth)
        return max(read, write, read + write - self._shared)

    @property
    def error(self) -> ModelError:
        """How far off the lines are where a point is left out, and the model at mixed steps."""
        errors = [*self._prompts.left_out_errors(), *self._steps.left_out_errors()]
        if len(self._variant.mixed) > 1:
            errors += [self._left_out_mixed(point) for point in self._variant.mixed]
        if not errors:
            return ModelError(0.0, 0.0, 0)
        return ModelError(fmean(map(abs, errors)), max(map(abs, errors)), len(errors))

    def _fit_writing(self, points: Sequence[StepPoint]) -> float:
        return slope_through_zero(
            (p.n_sequences * (p.depth - self._depth), p.seconds - self._steps.at(p.n_sequences)) for p in points
        )

    def _fit_reading(self, points: Sequence[PromptPoint]) -> float:
        """Prompts of several steps take longer than their steps at depth 0 would."""
        self._b = 0.0
        n = self._n_batch
        looks = ((p, sum(min(n, p.n_tokens - start) * start for start in range(0, p.n_tokens, n))) for p in points)
        return slope_through_zero((back, p.seconds - self.prompt(p.n_tokens)) for p, back in looks if back)

    def _fit_shared(self, points: Sequence[MixedPoint]) -> float:
        """The mean time that a mixed step takes less than its two parts; below 0 where it takes more."""
        saved = [(self._predicted(p) - p.seconds) / p.n_steps for p in points]
        return fmean(saved) if saved else 0.0

    def _predicted(self, point: MixedPoint) -> float:
        piece = -(-point.n_prompt // point.n_steps)
        starts = range(0, point.n_prompt, piece)
        return sum(
            self.mixed(point.n_sequences, point.depth, min(piece, point.n_prompt - start), start) for start in starts
        )

    def _left_out_mixed(self, point: MixedPoint) -> float:
        fitted = self._shared
        try:
            self._shared = 0.0
            self._shared = self._fit_shared([p for p in self._variant.mixed if p is not point])
            return self._predicted(point) / point.seconds - 1
        finally:
            self._shared = fitted


def _short(points: Sequence[PromptPoint], n_batch: int) -> list[PromptPoint]:
    """Prompts that one step reads; if all were longer, the shortest."""
    return [p for p in points if p.n_tokens <= n_batch] or [min(points, key=lambda p: p.n_tokens)]
