"""The engine process: its first words, its pulse, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lamella.batching.frames import FrameSocket, engine_decoder
from lamella.batching.messages import (
    Cancel,
    EngineMessage,
    Failed,
    Finished,
    FrontMessage,
    Generate,
    Hello,
    Refused,
    Status,
    Step,
    Stop,
)
from lamella.batching.settings import EngineSettings
from tests.fakes.engine_process import expected_tokens

PATIENCE_SECONDS = 60


class Front:
    """The other end of an engine process."""

    def __init__(self, process: subprocess.Popen[bytes], channel: FrameSocket) -> None:
        self.process, self._channel = process, channel
        self._messages = channel.receive(engine_decoder())

    def send(self, message: FrontMessage | EngineSettings) -> None:
        self._channel.send(message)

    def next(self, wanted: type[EngineMessage] | None = None) -> EngineMessage:
        """The next message, of a type if one is given."""
        return next(m for m in self._messages if wanted is None or isinstance(m, wanted))

    def vanish(self) -> None:
        self._channel.close()

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


@contextlib.contextmanager
def child(store: str = "fake", first: object = None) -> Iterator[Front]:
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_SECONDS)
    command = [sys.executable, "-m", "tests.fakes.engine_process", str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE)
    with process, FrameSocket(ours) as channel:
        channel.send(EngineSettings(store=store) if first is None else first)
        try:
            yield Front(process, channel)
        finally:
            process.kill()


def test_it_says_hello_first_answers_and_ends_when_told() -> None:
    with child() as front:
        hello = front.next()
        assert isinstance(hello, Hello)
        assert hello.pid == front.process.pid
        front.send(Generate(id=1, prompt="p", max_tokens=5))
        tokens = []
        while not isinstance(message := front.next(), Finished):
            tokens += [event.token for event in message.tokens] if isinstance(message, Step) else []
        assert tokens == expected_tokens("p", 5)
        front.send(Stop())
        assert front.exit_code() == 0


def test_its_pulse_goes_on_while_a_step_hangs_and_says_so() -> None:
    with child() as front:
        front.next(Hello)
        front.send(Generate(id=1, prompt="hang@0"))
        beats = [m for m in (front.next(Status) for _ in range(6)) if isinstance(m, Status)]
        assert beats[-1].step_seconds_now > beats[-2].step_seconds_now > 0


@pytest.mark.parametrize("prompt", ["p", "hang@2"])
def test_it_ends_with_its_front_also_inside_a_step(prompt: str) -> None:
    with child() as front:
        front.next(Hello)
        front.send(Generate(id=1, prompt=prompt, max_tokens=3))
        front.next(Step)
        front.vanish()
        assert front.exit_code() == 0


def test_it_ends_with_its_front_while_it_loads() -> None:
    with child("slow") as front:
        front.vanish()
        assert front.exit_code() == 0


def test_it_can_be_stopped_while_it_loads() -> None:
    with child("slow") as front:
        front.send(Stop())
        assert front.exit_code() == 0


def test_an_interrupt_from_the_terminal_is_not_for_it() -> None:
    with child() as front:
        front.next(Hello)
        os.kill(front.process.pid, signal.SIGINT)
        front.send(Generate(id=1, prompt="p", max_tokens=1))
        assert isinstance(front.next(Finished), Finished)


def test_the_sentence_of_an_error_in_loading_comes_through_with_its_exit_code() -> None:
    with child("refuse") as front:
        assert front.next() == Failed(message="the fake store has no model")
        assert front.exit_code() == 9


def test_a_fault_in_loading_is_named_and_shown() -> None:
    with child("raise") as front:
        assert front.next() == Failed(message="ValueError: a fault in loading")
        assert front.exit_code() == 1
        assert front.process.stderr is not None
        assert b"Traceback" in front.process.stderr.read()


def test_a_fault_of_the_loop_is_its_last_message() -> None:
    with child() as front:
        front.next(Hello)
        front.send(Generate(id=1, prompt="raise@2"))
        assert front.next(Failed) == Failed(message="RuntimeError: the fake loop fails")
        assert front.exit_code() == 1


def test_a_fault_over_one_request_costs_that_request_alone() -> None:
    with child() as front:
        front.next(Hello)
        front.send(Generate(id=1, prompt="unreadable"))
        assert front.next(Refused) == Refused(id=1, why="failed", message="ValueError: this prompt cannot be read")
        front.send(Generate(id=2, prompt="p", max_tokens=1))
        finished = front.next(Finished)
        assert isinstance(finished, Finished)
        assert finished.id == 2


@pytest.mark.parametrize(
    ("first", "complaint"), [(Stop(), "no message that is known"), ({"store": 3}, "no message that is known")]
)
def test_settings_that_are_none_are_refused(first: object, complaint: str) -> None:
    with child(first=first) as front:
        failed = front.next()
        assert isinstance(failed, Failed)
        assert complaint in failed.message
        assert front.exit_code() == 9


def test_a_request_before_hello_is_a_fault() -> None:
    with child("slow") as front:
        front.send(Cancel(id=1))
        failed = front.next()
        assert isinstance(failed, Failed)
        assert "before the engine said Hello" in failed.message
        assert front.exit_code() == 9


def test_an_answer_that_is_too_long_for_a_frame_becomes_a_refusal() -> None:
    with child() as front:
        front.next(Hello)
        front.send(Generate(id=5, prompt="overlong"))
        refused = front.next(Refused)
        assert isinstance(refused, Refused)
        assert (refused.id, refused.why) == (5, "failed")
        assert "64.0 MiB" in refused.message
