"""What ``--help`` lists, what the shell completes, and the version."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.cli.conftest import Run


def test_help_lists_the_commands(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in (
        "inspect",
        "devices",
        "measure",
        "imatrix",
        "plan",
        "build",
        "store",
        "run",
        "eval",
        "export",
        "import",
    ):
        assert command in out


def test_help_begins_with_what_a_newcomer_needs_and_groups_the_rest(run: Run) -> None:
    out = run("--help")[1]
    assert "lamella serve smollm2" in out
    places = [
        out.index(text) for text in ("Start here:\n  serve ", "Measure, plan, build:\n  inspect ", "Other machines:")
    ]
    assert places == sorted(places)
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2:3].islower()]
    assert {"doctor", "prepare", "ladder", "lm-eval", "store", "serve-store"} <= set(listed)


def test_the_shell_completes_commands_and_options() -> None:
    def complete(words: str) -> list[str]:
        asked = {"_LAMELLA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        program = [
            sys.executable,
            "-c",
            "import sys; from lamella.cli import main; sys.argv[0] = 'lamella'; sys.exit(main())",
        ]
        done = subprocess.run(program, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert {"serve", "serve-store"} == set(complete("lamella ser"))
    assert "--memory" in complete("lamella serve --mem")


def test_version(run: Run) -> None:
    assert run("--version")[1].startswith("lamella 0.")
