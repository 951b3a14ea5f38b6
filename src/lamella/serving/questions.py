"""What has one answer: embeddings, tokens of texts, switches, reading variants in, and saving the KV cache."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from lamella.batching.messages import (
    CacheSaved,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Prepare,
    Prepared,
    Refused,
    SaveCache,
    Switch,
    Switched,
    Tokenize,
    Tokenized,
)
from lamella.core.errors import LamellaError, RequestRefused

Asked = Embed | Tokenize | Detokenize | Switch | Prepare | SaveCache
Answer = Embedded | Tokenized | Detokenized | Switched | Prepared | CacheSaved

N_TRIES = 2
"""Engines that are given the same texts: the first may have died of something else."""


class Question:
    """One that has not been answered.

    Attributes:
        answer: done with the answer, or with an error.
        n_tries: engines that were given it.
        is_with_engine: the living engine has it.
    """

    def __init__(self, message: Asked) -> None:
        self.message = message
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.n_tries = 0
        self.is_with_engine = False

    def fail(self, error: LamellaError) -> None:
        """No answer will come."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Questions:
    """All of them, by number."""

    def __init__(self) -> None:
        self._open: dict[int, Question] = {}

    @property
    def n_embed(self) -> int:
        return sum(isinstance(question.message, Embed) for question in self._open.values())

    def __len__(self) -> int:
        return len(self._open)

    def add(self, message: Asked) -> Question:
        """A new one."""
        question = self._open[message.id] = Question(message)
        return question

    def forget(self, number: int) -> bool:
        """Nobody waits for the answer any more; whether the engine works on it and should stop."""
        question = self._open.pop(number, None)
        return question is not None and question.is_with_engine and isinstance(question.message, Embed)

    def to_send(self) -> Iterator[Asked]:
        """What the engine has not been given; each counts as sent when it is taken from here."""
        for question in [q for q in self._open.values() if not q.is_with_engine]:
            question.is_with_engine = True
            question.n_tries += 1
            yield question.message

    def answered(self, answer: Answer) -> None:
        """Pass an answer on, if somebody waits for it."""
        question = self._open.pop(answer.id, None)
        if question is not None and not question.answer.done():
            question.answer.set_result(answer)

    def refused(self, message: Refused) -> None:
        """The engine cannot do it."""
        self.fail(message.id, RequestRefused(message.message, why=message.why))

    def engine_died(self, why: str, *, is_excused: bool = False) -> None:
        """What is to be embedded or tokenized is sent again, unless that was done already; a switch has failed.

        Args:
            is_excused: the engine died of something else, so that this was no try.
        """
        for number, question in list(self._open.items()):
            if not question.is_with_engine:
                continue
            question.is_with_engine = False
            question.n_tries -= is_excused
            if isinstance(question.message, Switch | Prepare | SaveCache) or question.n_tries >= N_TRIES:
                what = type(question.message).__name__.lower()
                self.fail(number, RequestRefused(f"the engine died during this {what}: {why}", why="failed"))

    def fail(self, number: int, error: LamellaError) -> None:
        """End one without an answer."""
        question = self._open.pop(number, None)
        if question is not None:
            question.fail(error)

    def fail_all(self, error: Callable[[], LamellaError]) -> None:
        """End all without an answer, each with an error of its own."""
        for number in list(self._open):
            self.fail(number, error())
