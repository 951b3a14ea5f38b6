"""Perplexity of a text, and how far variants stray from a reference on it.

Windows are llama-perplexity's (tools/perplexity/perplexity.cpp, ``perplexity``): the text is tokenized whole and cut
into windows of ``n_tokens``; the first token of each gives way to BOS where the model wants one; tokens of the second
half are scored, each after everything before it in the window.  So figures compare with llama.cpp's.

Window by window the reference reads first and its logits of the scored half are held, and their probabilities; then
each variant reads the same window and is compared.  Memory is one window's logits, three times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InvalidRequest
from lamella.core.foreign import decode_text
from lamella.core.input_files import read_file
from lamella.evaluating.statistics import Estimate, exponential, mean
from lamella.evaluating.subject import Room, Subject
from lamella.llama.logits import Column, Logits, Reference, Survey, token_losses
from lamella.llama.model import Model

SMALLEST_WINDOW = 4  # two halves, each with a token to score or to see


@dataclass(frozen=True, slots=True)
class Text:
    """A text file that was read: its text, and the SHA-256 of its bytes."""

    path: Path
    content: str
    sha256: str


def read_text(path: Path) -> Text:
    """Read a text file; one line end at its end is dropped, as llama.cpp's ``-f`` does.

    Raises:
        InvalidRequest: it is missing, or not UTF-8.
    """
    try:
        data = read_file(path)
    except OSError as error:
        raise InvalidRequest(f"text {path}: {error.strerror}") from error
    content = decode_text(data, f"text {path}").removesuffix("\n")
    return Text(path, content, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class TextScores:
    """How one variant did on a text; differences and divergence are None without a reference, and for itself.

    Attributes:
        perplexity: ``exp(loss)``.
        loss: mean ``-log p`` of a scored token, in nats.
        loss_difference: to the reference, token by token; the log of the ratio of perplexities.
        kl: mean KL(reference || variant) of the next token's distribution, in nats.
        agreement: share of tokens at which both have the same most likely token.
        n_tokens: that were scored.
    """

    perplexity: Estimate
    loss: Estimate
    loss_difference: Estimate | None
    kl: Estimate | None
    agreement: Estimate | None
    n_tokens: int


class TextExam:
    """Windows of a text, tokenized for one model."""

    def __init__(self, text: Text, model: Model, n_tokens: int, n_windows: int | None) -> None:
        """Cut the text.

        Args:
            n_tokens: of a window.
            n_windows: how many from the start of the text; None for all.  Fewer if the text ends before.

        Raises:
            InvalidRequest: too short for two windows, or windows longer than the model's context.
        """
        if 0 < model.trained_context < n_tokens:
            raise InvalidRequest(f"windows of {n_tokens} tokens, but the model was trained for {model.trained_context}")
        self.windows = cut_windows(text, model, n_tokens, n_windows)
        self.room = Room(n_tokens, n_tokens, n_tokens - n_tokens // 2)

    def run(
        self, subject: Subject, variants: Sequence[str], reference: str | None, tick: Callable[[str], None]
    ) -> dict[str, TextScores]:
        """Scores by variant.

        Args:
            variants: without the reference, which reads every window first and gets scores too.
            tick: called after each window of each variant with its name.
        """
        order = [reference, *variants] if reference else list(variants)
        tallies = {name: _Tally() for name in order}
        held = Reference((self.room.n_outputs - 1, subject.vocabulary.n_tokens)) if reference else None
        for window in self.windows:
            first: _Reading | None = None
            for name in order:
                subject.use(name)
                reading = self._read(subject, window)
                tallies[name].add(reading)
                if held and first:
                    kl = held.divergences(reading.logits, reading.seen.normalizers, subject.n_threads)
                    tallies[name].compare(reading, first, kl)
                elif held:
                    first = reading
                    held.hold(reading.logits, reading.seen.normalizers, subject.n_threads)
                tick(name)
        return {name: tally.scores() for name, tally in tallies.items()}

    def _read(self, subject: Subject, window: Window) -> _Reading:
        logits = subject.window_logits(window.fed, self.room.n_outputs)[:-1]  # nothing follows the last token
        seen = subject.survey(logits)
        return _Reading(logits, seen, token_losses(logits, seen.normalizers, window.targets))


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that the model reads, and those that should follow in the scored half."""

    fed: tuple[int, ...]
    targets: NDArray[np.int64]


def cut_windows(text: Text, model: Model, n_tokens: int, n_windows: int | None) -> tuple[Window, ...]:
    """As the module says.

    Raises:
        InvalidRequest: no window, too small ones, or too short a text; says how many tokens are needed and there.
    """
    if n_tokens < SMALLEST_WINDOW:
        raise InvalidRequest(f"windows of {n_tokens} tokens; they need at least {SMALLEST_WINDOW}")
    if n_windows is not None and n_windows < 1:
        raise InvalidRequest(f"{n_windows} windows; at least one is needed")
    tokens = model.vocabulary.tokenize(text.content, parse_special=False)
    if len(tokens) < 2 * n_tokens:
        raise InvalidRequest(
            f"text {text.path} is too short: two windows of {n_tokens} tokens need {2 * n_tokens} tokens, "
            f"it has {len(tokens)}"
        )
    possible = len(tokens) // n_tokens
    starts = range(0, min(n_windows or possible, possible) * n_tokens, n_tokens)
    prefix = model.vocabulary.start
    return tuple(_window(tokens[start : start + n_tokens], prefix) for start in starts)


def _window(tokens: list[int], prefix: tuple[int, ...]) -> Window:
    first = len(tokens) // 2
    return Window((*prefix, *tokens[len(prefix) :]), np.array(tokens[first + 1 :], np.int64))


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one variant said in the scored half of one window; the logits are a view that the next pass overwrites."""

    logits: Logits
    seen: Survey
    losses: Column


class _Tally:
    """Figures of one variant, token by token."""

    def __init__(self) -> None:
        self._losses: list[Column] = []
        self._differences: list[Column] = []
        self._divergences: list[Column] = []
        self._agreements: list[Column] = []

    def add(self, reading: _Reading) -> None:
        self._losses.append(reading.losses)

    def compare(self, reading: _Reading, reference: _Reading, divergences: Column) -> None:
        """Against what the reference said of the same window; its logits are not looked at."""
        self._differences.append(reading.losses - reference.losses)
        self._divergences.append(divergences)
        self._agreements.append((reading.seen.best == reference.seen.best).astype(np.float64))

    def scores(self) -> TextScores:
        loss = mean(np.concatenate(self._losses))
        return TextScores(
            perplexity=exponential(loss),
            loss=loss,
            loss_difference=_mean(self._differences),
            kl=_mean(self._divergences),
            agreement=_mean(self._agreements),
            n_tokens=sum(len(x) for x in self._losses),
        )


def _mean(columns: list[Column]) -> Estimate | None:
    return mean(np.concatenate(columns)) if columns else None
