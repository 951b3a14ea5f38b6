"""``lamella run``: an answer, and a chat that changes the variant."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from lamella.llama.sampling import SamplingOptions
from tests.cli.conftest import Run, json_of


def test_run_answers_and_switches(run: Run, store: Path) -> None:
    answer = json_of(
        run("run", f"{store}@uniform-int8", "once upon", "--raw", "--max-tokens", "8", "--temperature", "0",
            "--context", "64", "--switch-to", "uniform-int4", "--switch-after", "4", "--layout", "mapped", "--json")
    )  # fmt: skip
    assert answer["variant"] == "uniform-int4"
    assert answer["generated_tokens"] == 8
    assert answer["switches"][0]["shards"] == 3
    assert answer["switches"][0]["switch_ms"] > 0


def test_run_streams_for_people(run: Run, store: Path) -> None:
    code, out, err = run(
        "run", store, "once upon", "--raw", "--max-tokens", "8", "--context", "64", "--temperature", "0"
    )
    assert code == 0
    assert out.strip()
    assert "8 tokens" in err


def test_a_chat_obeys_its_commands(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("/variants\n/switch nowhere\n/switch uniform-int4\n/help\n/exit\nhi\n")
    )
    code, _, err = run("run", f"{store}@uniform-int8", "--context", "64")
    assert code == 0
    assert "uniform-int8 (running)" in err
    assert "no variant" in err
    assert "uniform-int8 -> uniform-int4" in err
    assert "/clear" in err


def test_bytes_that_are_no_text_end_a_chat_and_are_said(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = io.TextIOWrapper(io.BytesIO(b"/variants\n" + b"x" * 9000 + b"\n\xff\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    code, _, err = run("run", f"{store}@uniform-int8", "--context", "64", "--max-tokens", "1")
    assert code == 0
    assert "the input is not UTF-8" in err


def test_a_prompt_of_bytes_that_are_no_text_is_refused(run: Run, store: Path) -> None:
    """As Python hands them on from a command line."""
    code, _, err = run("run", store, "once \udcff", "--raw", "--context", "64")
    assert code == 2
    assert "the text is not UTF-8 from character 5 on" in err


def test_each_option_of_sampling_is_what_it_is_called(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed was once taken for a penalty, which only a large one showed."""
    drawn: list[SamplingOptions] = []

    def made(*values: Any, **named: Any) -> SamplingOptions:
        drawn.append(SamplingOptions(*values, **named))
        return drawn[-1]

    wanted = {"temperature": 0.5, "top_k": 7, "top_p": 0.75, "min_p": 0.25, "repeat_penalty": 1.5, "seed": 2**31 - 1}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in wanted.items()]
    monkeypatch.setattr("lamella.cli.run.SamplingOptions", made)
    code, _, err = run("run", store, "once", "--raw", "--max-tokens", "1", "--context", "64", *options)
    assert code == 0, err
    assert drawn == [SamplingOptions(**wanted)]  # type: ignore[arg-type]
