"""An engine loop on a tiny model with two variants, and a front that keeps what it is told."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import lamella
from lamella.batching.loop import EngineLoop
from lamella.batching.messages import (
    EngineMessage,
    Finished,
    FrontMessage,
    Generate,
    Refused,
    Sampling,
    Step,
    Stop,
    TokenEvent,
)
from lamella.batching.settings import EngineSettings
from tests.fakes.tiny_model import write_tiny_model

GREEDY = Sampling(temperature=0.0)
LONG = 8192
"""Tokens that no request writes before somebody has cancelled it, however long that one is held up."""
PROMPTS = ["the quick brown fox", "once upon a time", "a b c d e f", "hello", "zzzz yyyy xxxx", "in the beginning was"]


class Arrivals(deque[Any]):
    """Of a loop, which sees none of them while they are held."""

    is_held = False

    def __bool__(self) -> bool:
        return len(self) > 0 and not self.is_held


class FakeFront:
    """Sends to a running loop, and waits for its answers."""

    def __init__(self) -> None:
        self.loop: EngineLoop
        self.told: list[EngineMessage] = []
        self.arrivals = Arrivals()
        self._news = threading.Condition()
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        self._last_id = 0

    def hear(self, message: EngineMessage) -> None:
        with self._news:
            self.told.append(message)
            self._news.notify_all()
        if isinstance(message, Step):
            assert self._may_go_on.wait(60)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is told meanwhile arrives in one moment, however long this thread is held up in between."""
        self.arrivals.is_held = True
        try:
            yield
        finally:
            self.arrivals.is_held = False
            self.loop._has_news.set()

    @contextmanager
    def stopped_at_a_step(self) -> Iterator[None]:
        """The loop tells of its next step, and does not go on before this is left."""
        self._may_go_on.clear()
        try:
            yield
        finally:
            self._may_go_on.set()

    def tell(self, message: FrontMessage) -> None:
        self.loop.receive(message)

    def start(self, prompt: Any, **fields: Any) -> int:
        """Submit a greedy request that does not end early; returns its number."""
        self._last_id += 1
        fields = {"sampling": GREEDY, "max_tokens": 12, "ignore_end": True, **fields}
        self.tell(Generate(id=self._last_id, prompt=prompt, **fields))
        return self._last_id

    def wait(self, found: Callable[[EngineMessage], bool], seconds: float = 60) -> Any:
        """The first message of which something is true."""
        end = time.monotonic() + seconds
        with self._news:
            while True:
                for message in self.told:
                    if found(message):
                        return message
                assert self._news.wait(end - time.monotonic()), f"not told; was told {self.told[-5:]}"

    def end_of(self, number: int) -> Finished:
        message = self.wait(lambda m: isinstance(m, Finished | Refused) and m.id == number)
        assert isinstance(message, Finished), message
        return message

    def refusal_of(self, number: int) -> Refused:
        message = self.wait(lambda m: isinstance(m, Finished | Refused) and m.id == number)
        assert isinstance(message, Refused), message
        return message

    def tokens_of(self, number: int) -> list[int]:
        """All tokens of a request, when it has ended."""
        self.end_of(number)
        return [t.token for m in list(self.told) if isinstance(m, Step) for t in m.tokens if t.id == number]

    def text_of(self, number: int) -> str:
        end = self.end_of(number)
        steps = [m for m in list(self.told) if isinstance(m, Step)]
        return "".join(t.text for m in steps for t in m.tokens if t.id == number) + end.text

    def write(self, prompt: Any, **fields: Any) -> list[int]:
        """Submit and wait for all tokens."""
        return self.tokens_of(self.start(prompt, **fields))

    def push_aside(self, prompt: Any, urgent_prompt: Any, **fields: Any) -> tuple[int, int]:
        """Have an urgent request take the place of one that writes; both numbers, when only the urgent one has ended.

        Args:
            fields: of the request that is pushed aside.
        """
        with self.stopped_at_a_step():
            slow = self.start(prompt, **fields)
            self.wait(lambda m: isinstance(m, Step))
            urgent = self.start(urgent_prompt, max_tokens=2, priority=1)
        self.end_of(urgent)
        assert slow not in {m.id for m in self.told if isinstance(m, Finished)}
        return slow, urgent


def events_of(front: FakeFront, number: int) -> list[TokenEvent]:
    """All tokens of a request with what was told of each, when it has ended."""
    front.end_of(number)
    steps = [m for m in front.told if isinstance(m, Step)]
    return [t for m in steps for t in m.tokens if t.id == number]


def assert_same_but_for_ties(expected: list[TokenEvent], found: list[TokenEvent]) -> None:
    """Equal up to a token whose two likeliest are as good as equal: sums in another order may then choose the other.

    llama.cpp adds up attention in the order of cells, and by other kernels for other sizes of a batch.
    """
    for a, b in zip(expected, found, strict=True):
        assert a.score is not None
        assert b.score is not None
        if a.token != b.token:
            best, second = a.score.top
            assert best.logprob - second.logprob < 0.1
            assert {a.token, b.token} == {best.token, second.token}
            return
        assert a.score.chosen.logprob == pytest.approx(b.score.chosen.logprob, abs=0.1)


OpenFront = Callable[..., AbstractContextManager[FakeFront]]


@pytest.fixture(scope="session")
def served_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    model = write_tiny_model(folder / "tiny.gguf", n_layers=3)
    for name in ("int8", "int4"):
        plan = lamella.plan(model, "uniform", precision=name, context=128)
        lamella.build(model, folder / "store", plan, name)
    return folder / "store"


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the variants int8, int5 and int4."""
    folder = tmp_path_factory.mktemp("three")
    model = write_tiny_model(folder / "tiny.gguf", n_layers=3)
    for name in ("int8", "int5", "int4"):
        plan = lamella.plan(model, "uniform", precision=name, context=128)
        lamella.build(model, folder / "store", plan, name)
    return folder / "store"


@pytest.fixture
def open_front(served_store: Path) -> OpenFront:
    @contextmanager
    def opened(**settings: Any) -> Iterator[FakeFront]:
        front = FakeFront()
        fields = {"store": str(served_store), "variant": "int8", "n_ctx": 128, "layout": "mapped", "n_sequences": 4}
        front.loop = EngineLoop.open(EngineSettings(**{**fields, **settings}), front.hear)
        front.loop._arrivals = front.arrivals
        thread = threading.Thread(target=front.loop.run)
        thread.start()
        try:
            yield front
        finally:
            front.tell(Stop())
            thread.join(60)
            assert not thread.is_alive()
            front.loop.close()

    return opened


@pytest.fixture
def front(open_front: OpenFront) -> Iterator[FakeFront]:
    with open_front() as opened:
        yield opened
