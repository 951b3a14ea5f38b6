"""Bad input: one sentence on standard error, a stable exit code, and the same as a document."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["plan", "spec:gpt-9"], 2, "llama-2-7b"),
        (["plan", "spec:llama-2-7b", "--policy", "magic"], 2, "uniform, lsaq, alpha, knapsack"),
        (["plan", "spec:llama-2-7b", "--policy", "knapsack"], 2, "metric sensitivity"),
        (["plan", "spec:llama-2-7b", "--kl", "0.1"], 2, "belong to policy knapsack, not to lsaq"),
        (["plan", "spec:llama-2-7b", "--avoid", "Q9"], 2, "no ggml type"),
        (["frontier", "spec:llama-2-7b"], 2, "--measurement"),
        (["frontier", "spec:llama-2-7b", "--measurement", "nowhere.json"], 5, "nowhere.json"),
        (["plan", "spec:llama-2-7b", "--memory", "0"], 2, "between one byte and"),
        (["plan", "spec:llama-2-7b", "--memory", "much"], 2, "no memory size"),
        (["plan", "spec:llama-2-7b", "--policy", "alpha", "--alpha", "0"], 2, "(0, 1]"),
        (["plan", "spec:llama-2-7b", "--policy", "alpha", "--alpha", "1.5"], 2, "(0, 1]"),
        (["plan", "spec:llama-2-7b", "--policy", "uniform", "--precision", "int9"], 2, "int9"),
        (["plan", "spec:llama-2-7b", "--average-bits", "7", "--memory", "6GiB"], 2, "not memory and average bits"),
        (["plan", "spec:llama-2-7b", "--average-bits", "7", "--bits-per-weight", "6"], 2, "a plan has one limit"),
        (["plan", "spec:llama-2-7b", "--average-bits", "-1"], 2, "above 0"),
        (["plan", "spec:llama-2-7b", "--bits-per-weight", "nan"], 2, "above 0"),
        (["plan", "spec:llama-2-7b", "--policy", "stock"], 2, "needs a mix of llama-quantize: Q1_0"),
        (["plan", "spec:llama-2-7b", "--policy", "stock", "--mix", "Q4_K_M"], 2, "is a specification"),
        (["plan", "spec:llama-2-7b", "--policy", "lsaq", "--mix", "Q4_K_M"], 2, "a mix is for policy stock"),
        (["plan", "spec:llama-2-7b", "--policy", "lsaq", "--seed", "1"], 2, "a seed is for policy random"),
        (["plan", "spec:llama-2-7b", "--policy", "random", "--seed", "-1"], 2, "at least 0"),
        (["plan", "nowhere.gguf"], 3, "does not exist"),
        (["inspect", "nowhere.gguf"], 3, "does not exist"),
        (["store", "ls", "nowhere"], 6, "nowhere"),
        (["run", "nowhere", "hi"], 6, "nowhere"),
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
