"""Numbers that options take: each has two ends, and what is beyond them is refused before anything is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

from lamella.cli.commands import COMMANDS
from lamella.cli.main import app
from lamella.cli.numbers import check_number
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from tests.cli.conftest import Run

NO_NUMBERS = {
    int: (str(10**30), str(-(10**30)), str(2**31)),
    float: ("nan", "inf", "-inf", "1e308", "-1e308"),
}


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands, with the words that call them."""
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name in command.commands if words else COMMANDS:
        yield from leaves(command.commands[name], (*words, name))


def kind_of(param: Any) -> type | None:
    """``int`` or ``float``, where it is an option of numbers."""
    kinds = {param.type_descriptor.annotation, *get_args(param.type_descriptor.annotation)}
    return next((kind for kind in NO_NUMBERS if kind in kinds), None)


NUMBERS = [
    (words, command, param)
    for words, command in leaves(typer.main.get_command(app))
    for param in command.params
    if kind_of(param)
]


def test_there_are_many() -> None:
    assert len(NUMBERS) > 80
    assert {words[0] for words, _, _ in NUMBERS} >= {"serve", "prepare", "simulate", "store", "cluster", "node", "pull"}


@pytest.mark.parametrize(
    ("words", "command", "param"), NUMBERS, ids=[f"{' '.join(words)} {param.opts[0]}" for words, _, param in NUMBERS]
)
def test_a_number_beyond_its_ends_is_one_sentence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], command: Any, param: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    needed: list[str] = []
    for other in command.params:
        if other.required and other is not param:
            value = "1" if kind_of(other) else "x"
            needed += [value] if other.param_type_name == "argument" else [other.opts[0], value]
    kind = kind_of(param)
    assert kind is not None
    for value in NO_NUMBERS[kind]:
        code, out, err = run(*words, *needed, f"{param.opts[0]}={value}")
        assert (code, out, len(err.splitlines())) == (2, "", 1), (value, err)
        assert param.opts[0] in err
    assert list(tmp_path.iterdir()) == []
    check_number(param, param.default)  # what is usual is no mistake


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("cluster", "invite", "n", "--listen", "127.0.0.1", "--minutes", "525601"), "--minutes"),
        (("simulate", "p", "t", "--faster", "1e-300"), "--faster"),
        (("simulate", "p", "t", "--scatter", "3"), "--scatter"),
        (("serve", "smollm2", "--sequences", "249"), "--sequences"),
        (("frontier", "m", "--points", "100000000"), "--points"),
        (("store", "verify", "s", "--jobs", "100000"), "--jobs"),
        (("node", "--listen", "h:1", "--threads", "513"), "--threads"),
        (("cluster", "serve", "s", "--port", "70000"), "--port"),
        (("cluster", "serve", "s", "--links", "0"), "--links"),
    ],
)
def test_what_would_crash_or_never_end_is_refused(run: Run, words: tuple[str, ...], says: str) -> None:
    code, _, err = run(*words)
    assert (code, says in err) == (2, True), err


def test_a_chat_may_come_after_others(run: Run) -> None:
    """What goes below 0 says so."""
    code, _, err = run("chat", "hi", "--priority", "-1", "--url", "http://127.0.0.1:1")
    assert (code, "--priority" in err) != (2, True), err


@pytest.mark.parametrize("threads", ["0", "-1", "513", "9" * 5000, "nan"])
def test_threads_of_the_environment_have_ends_too(threads: str) -> None:
    with pytest.raises(InvalidRequest, match="LAMELLA_THREADS must be a number from 1 to 512"):
        Config.from_environment({"LAMELLA_THREADS": threads})
