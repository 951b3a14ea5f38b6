"""What steps cost lately: running means that the next decisions use."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.batching.steps import LONGEST_STEP_SECONDS, Pace

WEIGHT = 0.2
"""Of the newest step in a running mean."""
LEAST_TOKENS = 16
"""Steps that read fewer prompt tokens say nothing of the speed of reading."""


@dataclass(slots=True)
class Speeds:
    """Running means; 0 while nothing is known.

    Attributes:
        prompt_tokens_per_second: of steps that read prompts.
        step_seconds: of steps that only write.
    """

    prompt_tokens_per_second: float = 0.0
    step_seconds: float = 0.0

    def saw(self, n_prompt_tokens: int, seconds: float) -> None:
        """A step took so long; it read so many prompt tokens."""
        if n_prompt_tokens >= LEAST_TOKENS:
            self.prompt_tokens_per_second = _mean(self.prompt_tokens_per_second, n_prompt_tokens / seconds)
        elif not n_prompt_tokens:
            self.step_seconds = _mean(self.step_seconds, seconds)

    def pace(self, longest_seconds: float = LONGEST_STEP_SECONDS, copy_seconds: float = 0.0) -> Pace:
        """For the next step, which shall not take much longer than so.

        Args:
            copy_seconds: see ``Pace``.
        """
        return Pace(self.prompt_tokens_per_second, self.step_seconds, longest_seconds, copy_seconds)


def _mean(before: float, now: float) -> float:
    return now if not before else before + WEIGHT * (now - before)
