"""The windows of text that a measurement reads: cut from files, or written by the model when no file is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lamella.core.artifacts import CalibrationText
from lamella.core.errors import InvalidRequest
from lamella.llama.model import Model
from lamella.measuring import selftext
from lamella.measuring.calibration import SELF_TASK, TaskText, Window, cut_windows
from lamella.measuring.progress import Progress, named


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many windows of each text, how long, and where."""

    samples: int
    window_tokens: int
    seed: int

    def described(self) -> dict[str, int | float | str]:
        return {"samples": self.samples, "window_tokens": self.window_tokens, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class TaskWindows:
    """The windows of one task."""

    described: CalibrationText
    windows: tuple[Window, ...]


def task_windows(
    model: Model, texts: Sequence[TaskText], sampling: Sampling, n_threads: int, on_progress: Progress
) -> list[TaskWindows]:
    """Windows of each text; of text that the model writes now, where there is none.

    Raises:
        InvalidRequest: a text is too short, or windows are longer than the model allows.
    """
    n, window_tokens, seed = sampling.samples, sampling.window_tokens, sampling.seed
    if window_tokens > model.trained_context > 0:
        raise InvalidRequest(
            f"windows of {window_tokens} tokens are longer than the {model.trained_context} tokens "
            "the model was trained for"
        )
    if texts:
        windows = [cut_windows(text, model.vocabulary, n, window_tokens, seed) for text in texts]
        return [
            TaskWindows(CalibrationText(text.task, text.sha256, n), cut)
            for text, cut in zip(texts, windows, strict=True)
        ]
    count = named(on_progress, n * window_tokens, "writing text")
    written = selftext.write_samples(model, n, window_tokens, seed, n_threads=n_threads, on_tokens=count)
    return [TaskWindows(CalibrationText(SELF_TASK, selftext.hash_samples(written), n), written)]
