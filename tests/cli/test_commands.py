"""Where commands are, and what looking one up costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lamella.cli.commands import COMMANDS, Commands

LATE = ("numpy", "llama_cpp", "matplotlib", "fastapi", "pulp")
"""What takes a tenth of a second or more to import."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_the_table_says(name: str) -> None:
    command = Commands()[name]
    assert command.name == name
    assert command.get_short_help_str()
    assert len(COMMANDS[name].summary) <= 60, "a line of 'lamella --help' on 80 columns"


def test_looking_for_serve_loads_what_serve_needs_at_once() -> None:
    program = (
        "import sys; from lamella.cli.commands import COMMANDS; COMMANDS['serve'].load('serve'); "
        "from lamella.serving import settings, supervisor; "
        f"print(*[name for name in {LATE!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_loads_no_command() -> None:
    program = "import sys; from lamella.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Run tasks of lm-evaluation-harness." in done.stdout
    assert "lamella.cli.serve" not in done.stderr.split()


def test_commands_are_a_mapping_that_keeps_what_it_loaded() -> None:
    commands = Commands()
    assert list(commands) == list(COMMANDS)
    assert len(commands) == len(COMMANDS)
    assert commands["inspect"] is commands["inspect"]
    with pytest.raises(KeyError):
        commands["nothing"]


def test_importing_the_command_line_loads_no_library() -> None:
    code = "import sys, lamella.cli; assert 'llama_cpp' not in sys.modules, 'llama_cpp was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
