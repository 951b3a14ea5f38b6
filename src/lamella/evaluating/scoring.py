"""Tasks scored by log-likelihood: multiple choice (``acc``, ``acc_norm``) and answers (loss, perplexity)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from lamella.core.errors import InvalidRequest
from lamella.evaluating.requests import Request, make_request
from lamella.evaluating.statistics import Estimate, exponential, mean, ratio
from lamella.evaluating.subject import Room, Subject
from lamella.evaluating.tasks import AnswerItem, ChoiceItem, TasksFile
from lamella.llama.model import Model


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """How one variant chose.

    Attributes:
        acc: share of items whose right choice has the largest summed log-likelihood.
        acc_norm: the same with each sum divided by the choice's length in characters (lm-evaluation-harness's default);
            None where all choices of an item are the same text.
        acc_difference: to the reference, item by item; None for the reference and where it was not scored.
        correct: by item, what ``acc`` is the mean of.
        n_items: that were scored.
    """

    acc: Estimate
    acc_norm: Estimate | None
    acc_difference: Estimate | None
    correct: tuple[bool, ...]
    n_items: int


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """How likely the answers were.

    Attributes:
        loss: mean ``-log p`` of a token of the answers; its error takes paragraphs, not questions, as independent.
        perplexity: ``exp(loss)``.
        n_items, n_tokens: questions and tokens of their answers.
    """

    loss: Estimate
    perplexity: Estimate
    n_items: int
    n_tokens: int


class TaskExam:
    """The items of a tasks file, tokenized for one model.

    Attributes:
        room: that the longest request needs.
        n_cut: items whose context was cut at its start because the model's context is shorter.
    """

    def __init__(self, tasks: TasksFile, model: Model) -> None:
        """Tokenize every item.

        Raises:
            InvalidRequest: a continuation is longer than the model's context; names file and line.
        """
        self.tasks = tasks
        self.requests = [_requests(tasks, item, model) for item in tasks.items]
        every = [r for requests in self.requests for r in requests]
        self.room = Room.for_requests(every)
        self.n_cut = sum(any(r.n_cut for r in requests) for requests in self.requests)

    def run(
        self, subject: Subject, variants: Sequence[str], reference: str | None, tick: Callable[[str], None]
    ) -> Mapping[str, ChoiceScores] | Mapping[str, AnswerScores]:
        """Scores by variant.

        Args:
            reference: the others are compared with it if it is among ``variants``.
            tick: called after each item of each variant with its name.
        """
        losses = {name: self._losses(subject, name, tick) for name in variants}
        items = self.tasks.items
        if isinstance(items[0], AnswerItem):
            answers = [i for i in items if isinstance(i, AnswerItem)]
            return {name: _answer_scores(answers, self.requests, found) for name, found in losses.items()}
        choices = [i for i in items if isinstance(i, ChoiceItem)]
        correct = {name: _correct(choices, found) for name, found in losses.items()}
        base = correct.get(reference or "")
        return {
            name: _choice_scores(choices, found, correct[name], None if name == reference else base)
            for name, found in losses.items()
        }

    def _losses(self, subject: Subject, variant: str, tick: Callable[[str], None]) -> list[list[float]]:
        """Summed ``-log p`` of each continuation of each item."""
        subject.use(variant)
        found = []
        for requests in self.requests:
            found.append([float(subject.losses(request).sum()) for request in requests])
            tick(variant)
        return found


def _requests(tasks: TasksFile, item: ChoiceItem | AnswerItem, model: Model) -> tuple[Request, ...]:
    pairs = item.pairs if isinstance(item, ChoiceItem) else ((item.prompt, item.answer),)
    most = model.trained_context or max(len(c.encode()) + len(a.encode()) for c, a in pairs) + 8
    try:
        return tuple(make_request(model.vocabulary, context, continuation, most) for context, continuation in pairs)
    except InvalidRequest as error:
        raise InvalidRequest(f"tasks file {tasks.path}, line {item.line}: {error}") from None


def _correct(items: Sequence[ChoiceItem], losses: Sequence[Sequence[float]]) -> list[bool]:
    return [int(np.argmin(found)) == item.label for item, found in zip(items, losses, strict=True)]


def _choice_scores(
    items: Sequence[ChoiceItem], losses: Sequence[Sequence[float]], correct: list[bool], base: list[bool] | None
) -> ChoiceScores:
    per_character = None
    if all(all(item.n_characters) for item in items):
        scaled = [np.divide(found, item.n_characters).tolist() for item, found in zip(items, losses, strict=True)]
        per_character = mean([float(c) for c in _correct(items, scaled)])
    difference = None if base is None else mean([float(a) - float(b) for a, b in zip(correct, base, strict=True)])
    return ChoiceScores(mean([float(c) for c in correct]), per_character, difference, tuple(correct), len(items))


def _answer_scores(
    items: Sequence[AnswerItem], requests: Sequence[Sequence[Request]], losses: Sequence[Sequence[float]]
) -> AnswerScores:
    rows = [
        (item.group, found[0], len(asked[0].continuation))
        for item, asked, found in zip(items, requests, losses, strict=True)
    ]
    groups = [list(group) for _, group in groupby(sorted(rows), key=lambda row: row[0])]
    loss = ratio([sum(r[1] for r in g) for g in groups], [sum(r[2] for r in g) for g in groups])
    return AnswerScores(loss, exponential(loss), len(items), sum(r[2] for r in rows))
