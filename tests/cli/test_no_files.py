"""What is no file where a command wants one: a named pipe that nobody writes to, a device without an end, a folder."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import typer

from lamella.cli.main import app
from tests.cli.conftest import Run, write_losses

PLACEMENT = Path(__file__).parents[2] / "docs" / "placement.md"
LONGEST_SECONDS = 30
"""Of one command; who waits for a pipe waits for ever."""

SIMULATE = ["simulate", "nowhere", "--trace", "poisson:rate=1,seconds=1"]
READS: dict[str, list[str]] = {
    "inspect": ["inspect", "{}"],
    "measure --calibration": ["measure", "{model}", "--metric", "jaccard", "--calibration", "a={}"],
    "measure --imatrix": ["measure", "{model}", "--metric", "sensitivity", "--imatrix", "{}"],
    "imatrix --calibration": ["imatrix", "{model}", "--calibration", "{}", "--out", "{out}"],
    "plan --imatrix": ["plan", "{model}", "--policy", "stock", "--mix", "Q4_K_M", "--imatrix", "{}"],
    "plan --measurement": ["plan", "spec:llama-2-7b", "--measurement", "{}"],
    "frontier --measurement": ["frontier", "{model}", "--measurement", "{}"],
    "frontier --plan": ["frontier", "{model}", "--measurement", "{losses}", "--plan", "{}"],
    "ladder --measurement": ["ladder", "{model}", "{out}", "--measurement", "{}"],
    "ladder --imatrix": ["ladder", "{model}", "{out}", "--measurement", "{losses}", "--imatrix", "{}"],
    "build --plan": ["build", "{model}", "{out}", "--plan", "{}"],
    "build --measurement": ["build", "{model}", "{out}", "--alpha", "0.5", "--measurement", "{}"],
    "build --imatrix": ["build", "{model}", "{out}", "--precision", "int8", "--imatrix", "{}"],
    "build --tune-on": ["build", "{model}", "{out}", "--precision", "int4", "--tune-on", "{}"],
    "import file": ["import", "{}", "{store}", "--name", "a"],
    "profile --text": ["profile", "{store}", "--text", "{}"],
    "profile --task": ["profile", "{store}", "--task", "{}"],
    "eval --text": ["eval", "{store}", "--text", "{}"],
    "eval --task": ["eval", "{store}", "--task", "{}"],
    "simulate target": ["simulate", "{}", *SIMULATE[2:]],
    "simulate --trace": [*SIMULATE[:-1], "{}"],
    "simulate --objectives": [*SIMULATE, "--objectives", "{}"],
    "serve --keys": ["serve", "{store}", "--keys", "{}"],
    "serve --certificate": ["serve", "{store}", "--certificate", "{}", "--private-key", "{measured}"],
    "serve --private-key": ["serve", "{store}", "--certificate", "{measured}", "--private-key", "{}"],
    "serve --objectives": ["serve", "{store}", "--objectives", "{}"],
    "serve --profile": ["serve", "{store}", "--token-p95", "50", "--profile", "{}"],
    "cluster plan --cluster": ["cluster", "plan", "{model}", "--cluster", "{}", "--measurement", "{measured}"],
    "cluster plan --measurement": ["cluster", "plan", "{model}", "--cluster", "{cluster}", "--measurement", "{}"],
    "cluster share --cluster": ["cluster", "share", "{measured}", "--cluster", "{}"],
    "cluster share tenants": ["cluster", "share", "{}", "--cluster", "{cluster}"],
    "cluster build --placement": ["cluster", "build", "{model}", "{out}", "--placement", "{}"],
    "cluster serve --placement": ["cluster", "serve", "{store}", "--placement", "{}"],
    "cluster serve --keys": ["cluster", "serve", "{store}", "--keys", "{}"],
}
"""Every way in which a command line names a file to read, which is ``{}``."""
WRITES = {"--out", "--plot", "--write", "file"}
FOLDERS = {"store", "stores", "target", "--folder"}
SAID = {"pipe": ("named pipe", "no file"), "device": ("device", "no file"), "folder": ("Is a directory", "folder")}


@pytest.fixture(scope="session")
def files(model: Path, store: Path, measured: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What commands are given besides."""
    example = re.search(r"```json\n(.*?)```", PLACEMENT.read_text(), re.DOTALL)
    assert example is not None
    cluster = tmp_path_factory.mktemp("files") / "cluster.json"
    cluster.write_text(example.group(1))
    found = {"model": model, "store": store, "measured": measured, "losses": write_losses(model), "cluster": cluster}
    return {name: str(path) for name, path in found.items()}


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    def too_long(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"nothing was said for {LONGEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def no_file(folder: Path, kind: str) -> Path:
    path = folder / "no-file"
    if kind == "device":
        return Path("/dev/zero")
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    return path


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("arguments", READS.values(), ids=READS)
def test_what_is_no_file_is_refused_at_once_by_what_it_is(
    run: Run, files: dict[str, str], tmp_path: Path, arguments: list[str], kind: str
) -> None:
    path = no_file(tmp_path, kind)
    more = ["--delta", "1"] if arguments[:2] == ["cluster", "plan"] else []
    with deadline():
        code, out, err = run(*(a.format(path, out=tmp_path / "out", **files) for a in arguments), *more)
    if (arguments[0], kind) == ("simulate", "folder") and arguments[1] == "{}":
        assert "no store" in err  # a store may be named there
        return
    assert (code in (2, 3, 5, 7), out) == (True, ""), err
    assert str(path) in err
    assert any(words in err for words in SAID[kind]), err
    assert len(err.strip().splitlines()) == 1


def test_every_file_that_a_command_reads_is_among_them() -> None:
    def paths(command: Any, name: str) -> Iterator[tuple[str, str]]:
        for sub in getattr(command, "commands", ()):
            yield from paths(command.commands[sub], f"{name} {sub}".strip())
        for parameter in command.params:
            if "Path" in str(parameter.type_descriptor.annotation):
                yield name, max(parameter.opts, key=len)

    found = list(paths(typer.main.get_command(app), ""))
    assert len(found) > 40
    unknown = [f"{name} {option}" for name, option in found if option not in WRITES | FOLDERS]
    assert [said for said in unknown if said not in READS] == []


def test_no_command_waits_for_a_pipe_in_a_store(run: Run, store: Path, tmp_path: Path) -> None:
    """Each file of a store in turn; where the command needs it, it says which."""
    whole = Path(shutil.copytree(store, tmp_path / "whole", symlinks=True))
    assert run("store", "pin", whole, "uniform-int8")[0] == run("store", "quota", whole, "1GiB")[0] == 0
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"store.json", "quota.json", "variant.json"} <= {name.name for name in names}
    for i, name in enumerate(names):
        folder = Path(shutil.copytree(whole, tmp_path / f"store-{i}", symlinks=True))
        (folder / name).unlink()
        os.mkfifo(folder / name)
        for command in (["ls"], ["verify"], ["du"], ["repair"], ["gc"]):
            with deadline():
                code, _, err = run("store", *command, folder)
            assert code in (0, 6, 7), (name, command, err)
            assert len(err.strip().splitlines()) <= 1, (name, command, err)
        with deadline():
            code, _, err = run("run", folder, "hi", "--max-tokens", "1")
        assert code in (3, 6, 7, 9), (name, err)  # the last of a model without a chat template, once it is loaded


@pytest.mark.parametrize("kind", SAID)
def test_what_is_no_file_is_not_written_over(run: Run, tmp_path: Path, kind: str) -> None:
    """A file that takes the place of ``/dev/zero`` breaks the machine."""
    path = no_file(tmp_path, kind)
    before = path.stat()
    code, _, err = run("plan", "spec:llama-2-7b", "--out", path)
    assert (code, f"{path} is " in err) == (2, True), err
    assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)


def test_a_pipe_without_a_name_is_read_to_its_end(run: Run, measured: Path) -> None:
    """As a shell's ``<(COMMAND)`` makes it; somebody writes into it."""
    reader, writer = os.pipe()
    os.write(writer, measured.read_bytes())
    os.close(writer)
    with deadline():
        code, _, err = run("plan", "spec:llama-2-7b", "--measurement", f"/dev/fd/{reader}")
    os.close(reader)
    assert (code, "the measurement is for tiny" in err) == (5, True), err
