"""The chat in the terminal: read a line, stream an answer, obey commands even while answering."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from lamella.cli.describe import describe_stats, describe_switch
from lamella.cli.output import note, stderr
from lamella.core.errors import LamellaError
from lamella.llama.sampling import SamplingOptions
from lamella.run.chat import Message
from lamella.run.engine import Engine
from lamella.run.prepared import Ready

HELP = """/switch NAME   run at another variant from the next token on, also while an answer is being written
/variants      what can be switched to
/clear         forget the conversation
/help          this
/exit          leave (also Ctrl-D); Ctrl-C stops an answer"""


class ChatLoop:
    """One conversation with an engine."""

    def __init__(
        self,
        engine: Engine,
        opening: Sequence[Message],
        sampling: SamplingOptions,
        max_tokens: int,
        stop: Sequence[str],
    ) -> None:
        self._engine, self._opening = engine, list(opening)
        self._sampling, self._max_tokens, self._stop = sampling, max_tokens, stop
        self._messages = list(opening)
        self._wanted: tuple[str, Future[Ready]] | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._held: list[str] = []

    def run(self) -> None:
        """Until the input ends or /exit."""
        note(f"variant {self._engine.variant}; /help lists the commands")
        threading.Thread(target=self._read_lines, daemon=True).start()
        while (line := self._next_line()) is not None:
            text = line.strip()
            if text == "/exit":
                return
            if text.startswith("/"):
                self._obey(text)
                self._switch_if_wanted(wait=True)
            elif text:
                self._answer(text)

    def _read_lines(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)
        self._lines.put(None)

    def _next_line(self) -> str | None:
        if self._held:
            return self._held.pop(0)
        if sys.stdin.isatty():
            stderr.print("> ", end="", style="bold")
        try:
            return self._lines.get()
        except KeyboardInterrupt:
            return None

    def _answer(self, text: str) -> None:
        messages = self._messages  # /clear during the answer puts another list in its place
        messages.append(Message("user", text))
        answer: list[str] = []
        try:
            generation = self._engine.chat(
                messages, max_tokens=self._max_tokens, sampling=self._sampling, stop=self._stop
            )
            for token in generation:
                answer.append(token.text)
                sys.stdout.write(token.text)
                sys.stdout.flush()
                self._obey_what_came_in()
                self._switch_if_wanted(wait=False)
            sys.stdout.write("\n")
            note(describe_stats(generation.stats, self._engine.variant))
        except KeyboardInterrupt:
            note("\n[stopped]")
        except LamellaError as error:
            note(f"\n[{error}]")
        if answer:
            messages.append(Message("assistant", "".join(answer)))
        else:
            messages.pop()  # nothing was answered: the question may be asked again

    def _obey_what_came_in(self) -> None:
        """Commands typed while an answer is written act at once; other lines wait for their turn."""
        while not self._lines.empty():
            line = self._lines.get()
            if line is None:
                self._lines.put(None)
                return
            if line.strip().startswith("/") and line.strip() != "/exit":
                self._obey(line.strip())
            else:
                self._held.append(line)

    def _obey(self, command: str) -> None:
        name, _, argument = command.partition(" ")
        if name == "/switch":
            self._want(argument.strip())
        elif name == "/variants":
            note(", ".join(f"{v} (running)" if v == self._engine.variant else v for v in self._engine.variants))
        elif name == "/clear":
            self._messages = list(self._opening)
        else:
            note(HELP)

    def _want(self, variant: str) -> None:
        try:
            self._wanted = (variant, self._engine.prepare(variant))
        except LamellaError as error:
            note(f"\n[{error}]")

    def _switch_if_wanted(self, *, wait: bool) -> None:
        """Switch as soon as the wanted variant is in memory; while answering, go on at the old one until then."""
        if self._wanted is None or not (wait or self._wanted[1].done()):
            return
        (variant, preparing), self._wanted = self._wanted, None
        try:
            preparing.result()
            note(f"\n[{describe_switch(self._engine.switch(variant))}]")
        except LamellaError as error:
            note(f"\n[{error}; still at {self._engine.variant}]")
