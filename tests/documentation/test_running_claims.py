"""``python -m benchmarks``: one claim after another, with what it lacks, and on from where it was."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from benchmarks import __main__ as runner
from benchmarks import common, stores
from benchmarks.claims import CLAIMS, Claim
from benchmarks.common import RESULTS

ABLE = Claim("able", ("able",), 1)
UNABLE = Claim("unable", ("unable",), 1, (lambda: "a spare moon",))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the claims that were measured; 'broken' fails."""
    names: list[str] = []

    def measure(one: Claim, form: runner.Form) -> bool:
        names.append(one.name)
        return one.name != "broken"

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setattr(runner, "write_page", lambda: None)
    return names


@pytest.fixture
def progress(tmp_path: Path) -> runner.Progress:
    return runner.Progress(tmp_path / "progress.json", "c0ffee")


def test_what_the_machine_lacks_something_for_is_skipped_with_the_reason(
    measured: list[str], progress: runner.Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.run([UNABLE, ABLE], progress) == 0
    assert measured == ["able"]
    assert "unable: skipped, for want of a spare moon" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_where_it_was(measured: list[str], progress: runner.Progress) -> None:
    runner.run([ABLE], progress)
    runner.run([ABLE, Claim("next", ("next",), 1)], progress)
    assert measured == ["able", "next"]


def test_what_another_commit_has_finished_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = []
    for commit in ("c0ffee", "decade", "c0ffee"):
        monkeypatch.setattr(stores, "commit", lambda commit=commit: commit)
        folders.append(stores.resumed_folder(tmp_path, "dilemma"))
    assert folders == [tmp_path / "c0ffee", tmp_path / "decade", tmp_path / "c0ffee"]
    assert stores.resumed_folder(None, "dilemma").parent.name == "lamella-dilemma"


def test_another_commit_begins_anew(measured: list[str], progress: runner.Progress) -> None:
    runner.run([ABLE], progress)
    runner.run([ABLE], runner.Progress(progress.path, "decade"))
    assert measured == ["able", "able"]


def test_one_that_fails_is_named_and_the_others_run(
    measured: list[str], progress: runner.Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.run([Claim("broken", ("broken",), 1), ABLE], progress) == 1
    assert measured == ["broken", "able"]
    assert capsys.readouterr().err.endswith("failed: broken\n")
    assert progress.finished() == ["able"]


def test_a_benchmark_that_leaves_no_record_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "WORK", tmp_path)
    assert not runner.measure(Claim("silent", ("__init__",), 1), runner.Form(tmp_path, is_trial=False))


def test_a_trial_changes_no_page_and_no_record_that_counts(
    measured: list[str], progress: runner.Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "write_page", lambda: pytest.fail("the page was written"))
    assert runner.run([ABLE], progress, runner.TRIAL) == 0
    assert measured == ["able"]
    assert runner.TRIAL.results != RESULTS


class _Parsed(Exception):
    """Arguments were read, and nothing else was done."""


@pytest.mark.parametrize("one", CLAIMS, ids=lambda one: one.name)
def test_a_benchmark_takes_the_arguments_of_its_claim(one: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the trial too; the module is imported as it is when it runs."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser) -> NoReturn:
        parse(self)
        raise _Parsed

    module = importlib.import_module(f"benchmarks.{one.command[0]}")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    for words in (one.command, (*one.command, *one.trial)):
        monkeypatch.setattr(sys, "argv", runner.filled(words))
        with pytest.raises(_Parsed):
            module.main()


def test_the_papers_tables_are_among_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--papers", "--list"]) == 0
    shown = capsys.readouterr().out
    of_papers = {one.name for one in CLAIMS if one.of_papers}
    assert {"lsaq_tables-smollm2", "dilemma-smollm2", "store-smollm2"} <= of_papers
    assert all((one.name in shown) == one.of_papers for one in CLAIMS)


def test_a_claim_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runner.main(["--only", "warp-drive", "--list"])
    assert "warp-drive" in capsys.readouterr().err


def test_a_record_names_the_commit_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "ROOT", tmp_path)
    assert common.commit() == "unknown"
    code, result = tmp_path / "code.py", tmp_path / "benchmarks" / "results" / "a.json"
    result.parent.mkdir(parents=True)
    for path in (code, result):
        path.write_text("1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], check=True)
    clean = common.commit()
    result.write_text("2")  # by a benchmark before, or a part of this one
    assert common.commit() == clean
    code.write_text("2")
    assert common.commit() == f"{clean}-dirty"
