"""The chat in the terminal: read a line, stream an answer, obey commands even while answering."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from lamella.cli.output import note, stderr
from lamella.core.errors import LamellaError
from lamella.run.chat import Message

HELP = """/switch NAME   run at another variant from the next token on, also while an answer is being written
/variants      what can be switched to
/clear         forget the conversation
/help          this
/exit          leave (also Ctrl-D); Ctrl-C stops an answer"""


class Pieces(Protocol):
    """An answer as it is written; closing it before its end stops it."""

    def __iter__(self) -> Any: ...

    def close(self) -> None: ...


class Partner(Protocol):
    """Who answers: an engine in this process, or a server.  All methods may raise ``LamellaError``."""

    def greeting(self) -> str:
        """Who it is, for the first line."""

    def answer(self, messages: Sequence[Message]) -> Pieces:
        """Begin an answer; pieces may be empty."""

    def last_answer(self) -> str:
        """One line about an answer that was read to its end."""

    def variants(self) -> str:
        """What can be switched to, in one line."""

    def prepare(self, variant: str) -> Future[Any]:
        """Begin to get ready for a switch."""

    def switch(self, variant: str, prepared: Future[Any]) -> str:
        """Do it, after waiting for ``prepared``; one line about it."""


class ChatLoop:
    """One conversation."""

    def __init__(self, partner: Partner, opening: Sequence[Message]) -> None:
        """Begin with messages that are always there, such as a system message."""
        self._partner, self._opening = partner, list(opening)
        self._messages = list(opening)
        self._wanted: deque[tuple[str, Future[Any]]] = deque()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._held: list[str] = []

    def run(self) -> None:
        """Until the input ends or /exit."""
        note(f"{self._partner.greeting()}; /help lists the commands")
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
        """In a thread.  However it ends, the chat does: nobody waits for lines that cannot come any more."""
        try:
            for line in sys.stdin:
                self._lines.put(line)
        except UnicodeDecodeError as error:
            note(f"[the input is not UTF-8: {error.reason}]")
        finally:
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
            with contextlib.closing(self._partner.answer(messages)) as pieces:
                self._show(pieces, answer)
            sys.stdout.write("\n")
            note(self._partner.last_answer())
        except KeyboardInterrupt:
            note("\n[stopped]")
        except LamellaError as error:
            note(f"\n[{error}]")
        if answer:
            messages.append(Message("assistant", "".join(answer)))
        else:
            messages.pop()  # nothing was answered: the question may be asked again

    def _show(self, pieces: Iterable[str], answer: list[str]) -> None:
        """Write pieces as they come, and keep them; commands and switches in between."""
        for piece in pieces:
            if piece:
                answer.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
            self._obey_what_came_in()
            self._switch_if_wanted(wait=False)

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
        try:
            if name == "/switch":
                self._wanted.append((argument.strip(), self._partner.prepare(argument.strip())))
            elif name == "/variants":
                note(self._partner.variants())
            elif name == "/clear":
                self._messages = list(self._opening)
            else:
                note(HELP)
        except LamellaError as error:
            note(f"\n[{error}]")

    def _switch_if_wanted(self, *, wait: bool) -> None:
        """Switch as soon as the wanted variant is in memory; while answering, go on at the old one until then."""
        while self._wanted and (wait or self._wanted[0][1].done()):
            try:
                note(f"\n[{self._partner.switch(*self._wanted.popleft())}]")
            except LamellaError as error:
                note(f"\n[{error}; no switch]")
