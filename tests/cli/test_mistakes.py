"""Bad input: one sentence on standard error, a stable exit code, and the same as a document."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamella import api
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["plan", "spec:gpt-9"], 2, "llama-2-7b"),
        (["plan", "no\udcffwhere.gguf"], 3, "does not exist"),
        (["plan", "spec:llama-2-7b", "--policy", "magic"], 2, "uniform, lsaq, alpha, knapsack"),
        (["plan", "spec:llama-2-7b", "--policy", "knapsack"], 2, "metric sensitivity"),
        (["plan", "spec:llama-2-7b", "--kl", "0.1"], 2, "belong to policy knapsack, not to lsaq"),
        (["plan", "spec:llama-2-7b", "--avoid", "Q9"], 2, "no ggml type"),
        (["plan", "spec:llama-2-7b", "--only", "Q9"], 2, "no ggml type"),
        (["frontier", "spec:llama-2-7b"], 2, "--measurement"),
        (["frontier", "spec:llama-2-7b", "--measurement", "nowhere.json"], 5, "nowhere.json"),
        (["plan", "spec:llama-2-7b", "--memory", "0"], 2, "between one byte and"),
        (["plan", "spec:llama-2-7b", "--memory", "much"], 2, "no memory size"),
        (["plan", "spec:llama-2-7b", "--policy", "alpha", "--alpha", "0"], 2, "(0, 1]"),
        (["plan", "spec:llama-2-7b", "--policy", "alpha", "--alpha", "1.5"], 2, "(0, 1]"),
        (["plan", "spec:llama-2-7b", "--policy", "uniform", "--precision", "int9"], 2, "int9"),
        (["plan", "spec:llama-2-7b", "--average-bits", "7", "--memory", "6GiB"], 2, "not memory and average bits"),
        (["plan", "spec:llama-2-7b", "--average-bits", "7", "--bits-per-weight", "6"], 2, "a plan has one limit"),
        (["plan", "spec:llama-2-7b", "--average-bits", "-1"], 2, "--average-bits must be at least 0, not -1"),
        (["plan", "spec:llama-2-7b", "--bits-per-weight", "nan"], 2, "at most 1000000000, not nan"),
        (["plan", "spec:llama-2-7b", "--bits-per-weight", "1e308"], 2, "at most 1000000000, not 1e+308"),
        (["plan", "spec:llama-2-7b", "--average-bits", "1e308"], 2, "at most 1000000000, not 1e+308"),
        (["plan", "spec:llama-2-7b", "--policy", "stock"], 2, "needs a mix of llama-quantize: Q1_0"),
        (["plan", "spec:llama-2-7b", "--policy", "stock", "--mix", "Q4_K_M"], 2, "is a specification"),
        (["plan", "spec:llama-2-7b", "--policy", "lsaq", "--mix", "Q4_K_M"], 2, "a mix is for policy stock"),
        (["plan", "spec:llama-2-7b", "--policy", "lsaq", "--seed", "1"], 2, "a seed is for policy random"),
        (["plan", "spec:llama-2-7b", "--policy", "random", "--seed", "-1"], 2, "at least 0"),
        (["plan", "nowhere.gguf"], 3, "does not exist"),
        (["inspect", "nowhere.gguf"], 3, "does not exist"),
        (["store", "ls", "nowhere"], 6, "nowhere"),
        (["run", "nowhere", "hi"], 6, "nowhere"),
        (["run", "nowhere", "\udcff"], 2, "not UTF-8 from character 0 on"),
        (["chat", "hi", "--system", "a\udcff"], 2, "not UTF-8 from character 1 on"),
        (["run", "smollm2", "hi"], 2, "lamella ladder smollm2 STORE makes one"),
        (["inspect", "/dev/null"], 3, "/dev/null is no file"),
        (["inspect", "."], 3, ". is a folder"),
        (["frobnicate"], 2, "frobnicate"),
        (["plan"], 2, "MODEL"),
    ],
)
def test_bad_input_gets_one_sentence_and_a_stable_code(run: Run, arguments: list[str], code: int, says: str) -> None:
    found, out, err = run(*arguments)
    assert found == code
    assert out == ""
    assert says in err
    assert len(err.strip().splitlines()) == 1
    document = json.loads(run(*arguments, "--json")[1])
    assert document["error"]["exit_code"] == code


def test_a_command_that_is_used_wrongly_says_where_it_explains_itself(run: Run) -> None:
    assert "plan --help" in run("plan")[2]
    assert "plan --help" in run("plan", "spec:llama-2-7b", "--frobnicate")[2]
    assert "--help" in run("plam")[2]


@pytest.mark.parametrize("arguments", [[], ["store"]])
def test_a_group_that_is_given_nothing_lists_its_commands(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: ")


def test_a_refusal_of_the_file_system_that_nobody_expected_is_no_fault_of_lamella(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as of a folder that this user may not look into, anywhere on the way to a path."""

    def refuses(_: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", "/root/model.gguf")

    monkeypatch.setattr(Path, "is_file", refuses)
    code, out, err = run("inspect", "/root/model.gguf", "--json")
    assert (code, err) == (7, "lamella: /root/model.gguf: Permission denied\n")
    assert json.loads(out)["error"] == {
        "kind": "StorageFailed", "message": "/root/model.gguf: Permission denied", "exit_code": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "name", "code", "says"),
    [
        ("--out", "nowhere/out.json", 7, "cannot write {}: No such file or directory"),
        ("--out", ".", 2, "is a folder; name a file"),
        ("--plot", "nowhere/plot.png", 7, "cannot write {}: No such file or directory"),
        ("--plot", "plot.txt", 2, "must end in .png, .svg, .pdf"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_computed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str, code: int, says: str
) -> None:
    def computes(*_: object, **__: object) -> None:
        raise AssertionError("it was computed")

    for what in ("measure", "plan"):
        monkeypatch.setattr(api, what, computes)
    path = tmp_path / name
    for command in (["measure", "model.gguf"], ["plan", "spec:llama-2-7b"]):
        found, _, err = run(*command, option, path)
        assert found == code, err
        assert says.format(path) in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "spec:llama-2-7b"], ["plan", "spec:llama-2-7b", "--json"]])
def test_a_reader_that_goes_away_ends_a_command_without_a_word(arguments: list[str]) -> None:
    command = [sys.executable, "-P", "-m", "lamella", *arguments]
    reader, writer = os.pipe()
    os.close(reader)  # it has gone before the command says anything
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
