"""All exams of one run: which variants, on which texts and tasks, and what came out."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lamella.core.artifacts import Variant
from lamella.core.errors import InvalidRequest
from lamella.evaluating.scoring import AnswerScores, ChoiceScores, TaskExam
from lamella.evaluating.subject import Room, Subject
from lamella.evaluating.tasks import TasksFile, read_tasks
from lamella.evaluating.text import Text, TextExam, TextScores, read_text
from lamella.run.engine import largest_variant
from lamella.store.store import Store

WINDOW_TOKENS = 512  # llama-perplexity's default

OnProgress = Callable[[int, int, str], None]
"""(windows and items done, of how many, what was last at work)."""


@dataclass(frozen=True, slots=True)
class Exams:
    """What to evaluate on.

    Attributes:
        text: file for perplexity, divergence and agreement.
        window_tokens: tokens of a window of the text.
        n_windows: windows from its start; None for all.
        kl: compare with the reference; else every variant stands alone.
        tasks: tasks files.
        limit: items of each, evenly spaced; None for all.
        n_threads: 0 for the cores that this process may use.
        check: verify the hash of every shard before it is used.
    """

    text: Path | None = None
    window_tokens: int = WINDOW_TOKENS
    n_windows: int | None = None
    kl: bool = True
    tasks: Sequence[Path] = ()
    limit: int | None = None
    n_threads: int = 0
    check: bool = False


@dataclass(slots=True)
class Row:
    """What one variant scored; ``tasks`` by name of the tasks file."""

    variant: Variant
    text: TextScores | None = None
    tasks: dict[str, ChoiceScores | AnswerScores] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a run found.

    Attributes:
        reference: name of the variant that others were compared with, or None.
        rows: by variant, in the order asked for; the reference comes first where only the text needed it.
        text, n_windows: what was read, and how many windows of it.
        tasks: the files that were read.
        n_cut: by tasks file, items whose context did not fit the model and lost its start.
        seconds: of the exams, loading not counted.
    """

    reference: str | None
    rows: Mapping[str, Row]
    text: Text | None
    n_windows: int
    tasks: Sequence[TasksFile]
    n_cut: Mapping[str, int]
    seconds: float


def evaluate(
    store: Store,
    variants: Sequence[str] = (),
    exams: Exams | None = None,
    *,
    reference: str | None = None,
    on_progress: OnProgress = lambda _done, _total, _what: None,
) -> Evaluation:
    """Evaluate variants of a store; the model is loaded once and the variants take turns.

    Args:
        variants: names; none: all of the store.
        reference: what divergence and differences are taken against, evaluated too; None: the largest variant, which
            then reads the text, and the tasks only if it is among ``variants``.

    Raises:
        InvalidRequest: nothing to evaluate on, a text that is too short, a broken tasks file.
        UnknownVariant: a variant or the reference is not in the store.
        StoreError, EngineFailed: the store holds no variant, or one cannot be run.
    """
    exams = exams or Exams()
    chosen = [store.variant(name) for name in dict.fromkeys(variants)] or list(store.variants())
    base = store.variant(reference) if reference else largest_variant(store)
    text, tasks = _read(exams)
    if reference and base not in chosen:
        chosen = [base, *chosen]
    everyone = [base, *chosen] if exams.kl and text and base not in chosen else chosen
    compares = exams.kl and base in everyone
    with Subject(store, everyone, check=exams.check) as subject:
        text_exam = TextExam(text, subject.model, exams.window_tokens, exams.n_windows) if text else None
        task_exams = [TaskExam(t, subject.model) for t in tasks]
        rooms = [*([text_exam.room] if text_exam else []), *(exam.room for exam in task_exams)]
        subject.make_room(functools.reduce(Room.joined, rooms), exams.n_threads)
        n_items = sum(len(t.items) for t in tasks)
        n_windows = len(text_exam.windows) if text_exam else 0
        tick = _Ticker(n_windows * len(everyone) + n_items * len(chosen), on_progress)
        start = time.perf_counter()
        rows = {v.name: Row(v) for v in everyone}
        if text_exam:
            others = [v.name for v in everyone if not (compares and v.name == base.name)]
            for name, scores in text_exam.run(subject, others, base.name if compares else None, tick).items():
                rows[name].text = scores
        for exam in task_exams:
            found = exam.run(subject, [v.name for v in chosen], base.name if compares else None, tick)
            for name in found:
                rows[name].tasks[exam.tasks.name] = found[name]
        seconds = time.perf_counter() - start
    n_cut = {e.tasks.name: e.n_cut for e in task_exams}
    return Evaluation(base.name if compares else None, rows, text, n_windows, tasks, n_cut, seconds)


def _read(exams: Exams) -> tuple[Text | None, list[TasksFile]]:
    """Everything that can be wrong with the files is found here, before a model is loaded."""
    if exams.text is None and not exams.tasks:
        raise InvalidRequest("nothing to evaluate on: name a text, a tasks file, or both")
    tasks = [read_tasks(path, exams.limit) for path in exams.tasks]
    names = [t.name for t in tasks]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"{names.count(name)} tasks files are named '{name}'; results could not be told apart")
    return (read_text(exams.text) if exams.text else None), tasks


class _Ticker:
    """Counts what is done."""

    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def __call__(self, what: str) -> None:
        self._done += 1
        self._on_progress(self._done, self._total, what)
