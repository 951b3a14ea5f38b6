"""Tasks files: one JSON object a line, all lines of a file of one kind.

- choices: ``{"context", "choices": [...], "label"}``: which choice is likeliest after ``context + " "``?
- partial (WinoGrande): ``{"contexts": [...], "continuation", "label"}``, whatever else it has: after which context is
  ``" " + continuation`` likeliest?
- answers (SQuAD): ``{"title", "context", "question", "answers": [...]}``: how likely is the first answer?

An ``id`` and other fields may be there; they are not looked at.  The space is lm-evaluation-harness's target delimiter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lamella.core.errors import InvalidRequest
from lamella.core.foreign import UNREADABLE
from lamella.core.input_files import read_file

DELIMITER = " "


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """Pairs of context and continuation, of which one is right.

    Attributes:
        line: number of the line in its file, from 1.
        n_characters: of each choice, for ``acc_norm``; all 0 where the continuation is the same for all.
    """

    line: int
    pairs: tuple[tuple[str, str], ...]
    label: int
    n_characters: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnswerItem:
    """A prompt and its answer; ``group`` is the paragraph it asks about."""

    line: int
    prompt: str
    answer: str
    group: str


@dataclass(frozen=True, slots=True)
class TasksFile:
    """A file that was read; ``items`` are all of one class.

    Attributes:
        name: the file's name without its ending.
        sha256: of the file's bytes.
        n_available: items in the file; ``items`` may be a part of them.
    """

    name: str
    path: Path
    sha256: str
    n_available: int
    items: tuple[ChoiceItem, ...] | tuple[AnswerItem, ...]


class _Choices(msgspec.Struct):
    context: str
    choices: list[str]
    label: int


class _Partial(msgspec.Struct):
    contexts: list[str]
    continuation: str
    label: int


class _Answers(msgspec.Struct):
    title: str
    context: str
    question: str
    answers: list[str]


def read_tasks(path: Path, limit: int | None = None) -> TasksFile:
    """Read a tasks file and check every line of it.

    Args:
        limit: take so many items, evenly spaced over the file.

    Raises:
        InvalidRequest: no such file, no item in it, or a broken line: file and line number are named.
    """
    if limit is not None and limit < 1:
        raise InvalidRequest(f"a limit of {limit} items; at least 1 is needed")
    try:
        data = read_file(path)
    except OSError as error:
        raise InvalidRequest(f"tasks file {path}: {error.strerror}") from error
    lines = [(i, line) for i, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if not lines:
        raise InvalidRequest(f"tasks file {path} holds no task")
    kind = _kind(path, *lines[0])
    items = [_item(path, number, line, kind) for number, line in lines]
    chosen = items if limit is None or limit >= len(items) else spread(items, limit)
    return TasksFile(path.stem, path, hashlib.sha256(data).hexdigest(), len(items), tuple(chosen))


def spread(items: Sequence[Any], limit: int) -> list[Any]:
    """``limit`` items at equal distances, the first one included; files are often sorted by source or difficulty."""
    return [items[i * len(items) // limit] for i in range(limit)]


def _kind(path: Path, number: int, line: bytes) -> type[_Choices] | type[_Partial] | type[_Answers]:
    """What the first line is, and so all others."""
    try:
        fields = msgspec.json.decode(line)
    except UNREADABLE as error:
        raise _broken(path, number, f"no JSON: {error}") from None
    if isinstance(fields, dict):
        if "contexts" in fields:
            return _Partial
        if "choices" in fields:
            return _Choices
        if "answers" in fields:
            return _Answers
    raise _broken(path, number, "none of contexts, choices and answers in it, so it is no known kind of task")


def _item(
    path: Path, number: int, line: bytes, kind: type[_Choices] | type[_Partial] | type[_Answers]
) -> ChoiceItem | AnswerItem:
    try:
        fields = msgspec.json.decode(line, type=kind)
    except UNREADABLE as error:
        raise _broken(path, number, str(error)) from None
    if isinstance(fields, _Answers):
        return _answer(path, number, fields)
    if isinstance(fields, _Partial):
        pairs = [(context, fields.continuation) for context in fields.contexts]
        lengths = [0] * len(pairs)
    else:
        pairs = [(fields.context, choice) for choice in fields.choices]
        lengths = [len(choice) for choice in fields.choices]
    if len(pairs) < 2 or not 0 <= fields.label < len(pairs):
        raise _broken(path, number, f"label {fields.label} of {len(pairs)} choices")
    if not all(continuation for _, continuation in pairs):
        raise _broken(path, number, "a choice is empty")
    delimited = tuple((context, DELIMITER + continuation) for context, continuation in pairs)
    return ChoiceItem(number, delimited, fields.label, tuple(lengths))


def _answer(path: Path, number: int, fields: _Answers) -> AnswerItem:
    if not fields.answers or not fields.answers[0]:
        raise _broken(path, number, "no answer, or an empty one")
    prompt = f"Title: {fields.title}\n\nBackground: {fields.context}\n\nQuestion: {fields.question}\n\nAnswer:"
    return AnswerItem(number, prompt, DELIMITER + fields.answers[0], fields.context)


def _broken(path: Path, number: int, why: str) -> InvalidRequest:
    return InvalidRequest(f"tasks file {path}, line {number}: {why}")
