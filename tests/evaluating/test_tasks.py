from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from lamella.core.errors import InvalidRequest
from lamella.evaluating.evaluation import Exams, evaluate
from lamella.evaluating.scoring import AnswerScores, ChoiceScores
from lamella.evaluating.tasks import read_tasks, spread
from lamella.store.store import Store
from tests.evaluating.conftest import WriteTasks

CHOICES: list[dict[str, Any]] = [
    {"id": str(i), "context": f"Question {i}: is it so?\nAnswer:", "choices": ["yes", "no, never", "a"], "label": i % 3}
    for i in range(9)
]
PARTIAL = {"context": "", "choices": ["x"], "contexts": ["Ann saw", "Bob saw"], "continuation": "it all.", "label": 1}
ANSWER = {"title": "T", "context": "A fox is red.", "question": "What is red?", "answers": ["A fox", "fox"]}


def _exams(*paths: Path, limit: int | None = None) -> Exams:
    return Exams(tasks=paths, limit=limit, n_threads=1)


class _Fresh:
    """Sums of log-likelihoods, each text read from nothing by another binding."""

    def __init__(self, store: Store, variant: str) -> None:
        self._model = llama_cpp.Llama(
            str(store.first_link(variant)), n_ctx=256, logits_all=True, verbose=False, n_threads=1
        )

    def loss(self, context: str, continuation: str) -> float:
        before = self._model.tokenize(context.encode())
        tokens = self._model.tokenize((context + continuation).encode())
        self._model.reset()
        self._model.eval(tokens)
        rows = self._model.scores[len(before) - 1 : len(tokens) - 1].astype(np.float64)
        logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return -float(sum(row[t] for row, t in zip(logs, tokens[len(before) :], strict=True)))


def test_choices_are_those_of_reading_each_from_nothing(store: Store, write_tasks: WriteTasks) -> None:
    found = evaluate(store, ["large", "small"], _exams(write_tasks("quiz", CHOICES)))
    for name in ("large", "small"):
        fresh = _Fresh(store, name)
        losses = [[fresh.loss(i["context"], " " + c) for c in i["choices"]] for i in CHOICES]
        correct = tuple(int(np.argmin(x)) == i["label"] for x, i in zip(losses, CHOICES, strict=True))
        by_length = [np.divide(x, [3, 9, 1]) for x in losses]
        normed = [int(np.argmin(x)) == i["label"] for x, i in zip(by_length, CHOICES, strict=True)]
        scores = found.rows[name].tasks["quiz"]
        assert isinstance(scores, ChoiceScores)
        assert scores.correct == correct
        assert scores.acc.value == pytest.approx(sum(correct) / 9)
        assert scores.acc_norm is not None
        assert scores.acc_norm.value == pytest.approx(sum(normed) / 9)


def test_answers_lose_what_reading_them_from_nothing_loses(store: Store, write_tasks: WriteTasks) -> None:
    second = {**ANSWER, "question": "Which animal is red?"}
    other = {**ANSWER, "context": "The sea is blue.", "question": "What is blue?", "answers": ["The sea"]}
    found = evaluate(store, ["small"], _exams(write_tasks("squad", [ANSWER, second, other])))
    scores = found.rows["small"].tasks["squad"]
    fresh = _Fresh(store, "small")
    loss = sum(
        fresh.loss(f"Title: T\n\nBackground: {i['context']}\n\nQuestion: {i['question']}\n\nAnswer:", " " + a)
        for i, a in ((ANSWER, "A fox"), (second, "A fox"), (other, "The sea"))
    )
    assert isinstance(scores, AnswerScores)
    assert scores.n_tokens == 6 + 6 + 8
    assert scores.loss.value == pytest.approx(loss / 20, rel=2e-3)  # batches of other sizes round differently
    assert scores.perplexity.value == pytest.approx(math.exp(scores.loss.value))


def test_partial_scoring_compares_contexts(store: Store, write_tasks: WriteTasks) -> None:
    fresh = _Fresh(store, "large")
    losses = [fresh.loss(context, " it all.") for context in ("Ann saw", "Bob saw")]
    scores = evaluate(store, ["large"], _exams(write_tasks("wino", [PARTIAL]))).rows["large"].tasks["wino"]
    assert isinstance(scores, ChoiceScores)
    assert scores.correct == (losses[1] < losses[0],)
    assert scores.acc_norm is None


def test_the_order_of_variants_changes_nothing(store: Store, write_tasks: WriteTasks) -> None:
    path = write_tasks("quiz", CHOICES)
    one = evaluate(store, ["large", "small"], _exams(path), reference="large")
    other = evaluate(store, ["small", "large"], _exams(path), reference="large")
    for name in ("large", "small"):
        assert one.rows[name].tasks == other.rows[name].tasks


def test_a_limit_takes_items_at_equal_distances(write_tasks: WriteTasks) -> None:
    tasks = read_tasks(write_tasks("quiz", CHOICES), limit=3)
    assert [i.line for i in tasks.items] == [1, 4, 7]
    assert tasks.n_available == 9
    assert spread(range(10), 4) == [0, 2, 5, 7]


@pytest.mark.parametrize(("line", "complaint"), [
    ("{", "no JSON|truncated"),
    ('{"context": "a", "choices": ["b", "c"]}', "label"),
    ('{"context": "a", "choices": ["b", "c"], "label": 2}', "label 2 of 2 choices"),
    ('{"context": "a", "choices": ["b", ""], "label": 1}', "a choice is empty"),
    ('{"context": "a", "choices": "b", "label": 0}', "Expected `array`"),
])  # fmt: skip
def test_a_broken_line_is_named(write_tasks: WriteTasks, line: str, complaint: str) -> None:
    path = write_tasks("quiz", CHOICES[:2])
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(InvalidRequest, match=rf"quiz\.jsonl, line 4: .*({complaint})"):
        read_tasks(path)


def test_a_file_of_no_known_kind(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(InvalidRequest, match=r"odd\.jsonl, line 1: none of contexts"):
        read_tasks(tmp_path / "odd.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidRequest, match="holds no task"):
        read_tasks(tmp_path / "empty.jsonl")


def test_a_context_too_long_for_the_model_loses_its_start(store: Store, write_tasks: WriteTasks) -> None:
    long = {**CHOICES[0], "context": "word " * 100}
    found = evaluate(store, ["large"], _exams(write_tasks("long", [long, CHOICES[1]])))
    assert found.n_cut == {"long": 1}
