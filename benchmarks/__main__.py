"""Run claims one after another, on a machine that does nothing else, and write their page anew.

    python -m benchmarks [--only NAME,...] [--papers] [--again] [--trial] [--list]

What this machine lacks something for is skipped, with the reason; what fails is named at the end, and the others run.
An interrupted run of the same commit goes on after the claims that it finished; ``--again`` begins anew.  ``--trial``
runs each as short as it gets, only to see that it runs: its records go to ``build/benchmarks/trial``, and no page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.claims import CLAIMS, Claim, claim, models_folder
from benchmarks.common import RESULTS, ROOT
from benchmarks.page import write_page

WORK = ROOT / "build" / "benchmarks"


@dataclass(frozen=True)
class Progress:
    """What a run of one commit has finished; kept in a file."""

    path: Path
    commit: str

    def finished(self) -> list[str]:
        """Names of claims; none where the file is of another commit."""
        if not self.path.exists():
            return []
        document = json.loads(self.path.read_text())
        return list(document["finished"]) if document["commit"] == self.commit else []

    def add(self, name: str) -> None:
        """One more."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        finished = [*self.finished(), name]
        self.path.write_text(json.dumps({"commit": self.commit, "finished": finished}) + "\n")

    def forget(self) -> None:
        """Begin anew."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Form:
    """How claims are measured.

    Attributes:
        results: folder of the records.
        is_trial: as short as it gets, beside the records that count.
    """

    results: Path
    is_trial: bool


FULL, TRIAL = Form(RESULTS, is_trial=False), Form(WORK / "trial", is_trial=True)


def lacks(one: Claim) -> list[str]:
    """What this machine lacks for a claim."""
    return [missing for need in one.needs if (missing := need()) is not None]


def filled(words: Sequence[str]) -> list[str]:
    """Words of a command with the folders put in."""
    return [word.format(work=WORK, models=models_folder()) for word in words]


def measure(one: Claim, form: Form = FULL) -> bool:
    """Run a claim; whether it ended well and left its record."""
    WORK.mkdir(parents=True, exist_ok=True)
    record = form.results / f"{one.name}.json"
    before = record.stat().st_mtime_ns if record.exists() else 0
    for words in one.before:
        command = filled(words)
        if not Path(command[-1]).exists():
            subprocess.run([sys.executable, "-m", "lamella", *command], cwd=ROOT, check=True)
    module, *arguments = filled((*one.command, *(one.trial if form.is_trial else ())))
    environment = {**os.environ, "LAMELLA_RESULTS": str(form.results)}
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    return done.returncode == 0 and record.exists() and record.stat().st_mtime_ns > before


def run(chosen: Sequence[Claim], progress: Progress, form: Form = FULL) -> int:
    """Run them; 0 where none failed."""
    failed = []
    for number, one in enumerate(chosen, start=1):
        label = f"[{number}/{len(chosen)}] {one.name}"
        if one.name in progress.finished():
            say(f"{label}: finished before")
        elif missing := lacks(one):
            say(f"{label}: skipped, for want of {'; '.join(missing)}")
        else:
            say(f"{label}: a trial" if form.is_trial else f"{label}: about {one.minutes} minutes")
            start = time.monotonic()
            if _measured(one, form):
                progress.add(one.name)
                if not form.is_trial:
                    write_page()
                say(f"{label}: {(time.monotonic() - start) / 60:.1f} minutes")
            else:
                failed.append(one.name)
                say(f"{label}: failed")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return bool(failed)


def _measured(one: Claim, form: Form) -> bool:
    try:
        return measure(one, form)
    except subprocess.CalledProcessError as error:
        say(str(error))
        return False


def say(text: str) -> None:
    """For people; what benchmarks print for programs is on standard output."""
    sys.stderr.write(f"{text}\n")


def show(chosen: Sequence[Claim]) -> None:
    """Names, minutes, and what is missing."""
    for one in chosen:
        known = "record" if (RESULTS / f"{one.name}.json").exists() else "no record"
        missing = f"lacks {'; '.join(lacks(one))}" if lacks(one) else ""
        print(f"{one.name:22} {one.minutes:4} min  {known:9}  {missing}".rstrip())


def head() -> str:
    """The commit that is checked out."""
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="names of claims, with commas")
    parser.add_argument("--papers", action="store_true", help="only the papers' tables")
    parser.add_argument("--again", action="store_true", help="also what this commit has finished")
    parser.add_argument("--trial", action="store_true", help="each as short as it gets; figures mean nothing")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    asked = parser.parse_args(arguments)
    try:
        chosen = [claim(name) for name in asked.only.split(",")] if asked.only else list(CLAIMS)
    except KeyError as error:
        parser.error(f"no claim {error}; there are {', '.join(one.name for one in CLAIMS)}")
    chosen = [one for one in chosen if one.of_papers or not asked.papers]
    if asked.list:
        show(chosen)
        return 0
    form = TRIAL if asked.trial else FULL
    progress = Progress(WORK / ("progress-trial.json" if asked.trial else "progress.json"), head())
    if asked.again:
        progress.forget()
    return run(chosen, progress, form)


if __name__ == "__main__":
    sys.exit(main())
