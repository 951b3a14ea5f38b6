"""Calibration text: from ``TASK=FILE`` to windows of tokens.

A text is cut into as many equal parts as samples are wanted, and one window is taken from each part, at a place that
the seed chooses.  So windows cover the whole text, never overlap, and another seed gives other windows.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamella.core.errors import InvalidRequest
from lamella.core.foreign import decode_text
from lamella.core.input_files import read_file
from lamella.llama.vocabulary import Vocabulary

DEFAULT_TASK = "text"
SELF_TASK = "self"
_TAGGED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", re.DOTALL)

Window = tuple[int, ...]
"""Token ids of one sample."""


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """A text file, and the task it stands for (ALCS measures a layer's contribution on several)."""

    task: str
    path: Path


@dataclass(frozen=True, slots=True)
class TaskText:
    """A calibration file that was read: its text, and the SHA-256 of its bytes."""

    task: str
    path: Path
    text: str
    sha256: str


def parse_calibration(argument: str) -> CalibrationFile:
    """``"code=data/code.txt"`` -> task ``code``; ``"data/code.txt"`` -> task ``text``.

    What stands before the first ``=`` is a task if it looks like a name; write ``./a=b.txt`` for a file named so.

    Raises:
        InvalidRequest: no file is named, or the task is ``self``, which stands for text the model wrote.
    """
    match = _TAGGED.fullmatch(argument)
    task, path = (match.group(1), match.group(2)) if match else (DEFAULT_TASK, argument)
    if not path.strip() or path.endswith("="):
        raise InvalidRequest(f"'{argument}' names no calibration file; write FILE or TASK=FILE")
    if task == SELF_TASK:
        raise InvalidRequest(f"task '{SELF_TASK}' stands for text that the model writes itself; name {path} otherwise")
    return CalibrationFile(task, Path(path))


def read_texts(files: Sequence[CalibrationFile]) -> tuple[TaskText, ...]:
    """Read every calibration file.

    Raises:
        InvalidRequest: two files of one task, or a file that is missing, empty or not UTF-8.
    """
    tasks = [f.task for f in files]
    for file in files:
        if tasks.count(file.task) > 1:
            raise InvalidRequest(
                f"{tasks.count(file.task)} calibration files have the task '{file.task}'; "
                "give each its own, as in code=FILE"
            )
    return tuple(_read_text(file) for file in files)


def _read_text(file: CalibrationFile) -> TaskText:
    try:
        data = read_file(file.path)
    except OSError as error:
        raise InvalidRequest(f"calibration file {file.path}: {error.strerror}") from error
    text = decode_text(data, f"calibration file {file.path}")
    if not text.strip():
        raise InvalidRequest(f"calibration file {file.path} is empty")
    return TaskText(file.task, file.path, text, hashlib.sha256(data).hexdigest())


def cut_windows(
    text: TaskText, vocabulary: Vocabulary, n_windows: int, window_tokens: int, seed: int
) -> tuple[Window, ...]:
    """Windows of a text, each starting with what the model wants at the start of a text (BOS, where it has one).

    Raises:
        InvalidRequest: the text is too short; says how many tokens are needed and there.
    """
    prefix = vocabulary.start
    tokens = vocabulary.tokenize(text.text, add_special=False, parse_special=False)
    body = window_tokens - len(prefix)
    if len(tokens) < n_windows * body:
        possible = len(tokens) // body
        advice = f"{possible} samples would fit" if possible > 1 else "not even two windows fit"
        raise InvalidRequest(
            f"calibration file {text.path} is too short: {n_windows} samples of {window_tokens} tokens need "
            f"{n_windows * body} tokens, it has {len(tokens)} ({advice})"
        )
    starts = spread_starts(len(tokens), n_windows, body, seed)
    return tuple((*prefix, *tokens[start : start + body]) for start in starts)


def spread_starts(n_tokens: int, n_windows: int, window_tokens: int, seed: int) -> tuple[int, ...]:
    """Where windows start: one in each of ``n_windows`` equal parts, at a random place inside its part."""
    chance = random.Random(seed)
    bounds = [i * n_tokens // n_windows for i in range(n_windows + 1)]
    return tuple(chance.randint(first, end - window_tokens) for first, end in itertools.pairwise(bounds))
