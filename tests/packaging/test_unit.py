"""The systemd unit: systemd understands it, and it fits the command."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from lamella.cli import main
from lamella.core.errors import InvalidRequest, LibraryError, ModelError, StoreError
from lamella.serving.server import LAST_SECONDS
from lamella.serving.supervision import SupervisorOptions

UNIT = Path(__file__).parents[2] / "packaging" / "lamella.service"


@pytest.fixture
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_it(tmp_path: Path) -> None:
    program = tmp_path / "lamella"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    here = tmp_path / "lamella.service"
    here.write_text(UNIT.read_text().replace("/opt/lamella/bin/lamella", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(here)], capture_output=True, text=True, check=False, timeout=60
    )
    complaints = [line for line in done.stderr.splitlines() if "lamella.service" in line]
    assert (done.returncode, complaints) == (0, []), done.stderr


def test_it_waits_longer_than_the_server_drains(unit: configparser.ConfigParser) -> None:
    words = unit["Service"]["ExecStart"].split()
    drain_seconds = float(words[words.index("--drain-seconds") + 1])
    after_that = LAST_SECONDS * 2 + SupervisorOptions().stop_seconds
    assert float(unit["Service"]["TimeoutStopSec"]) >= drain_seconds + after_that
    assert unit["Service"]["KillMode"] == "mixed"


def test_its_command_is_one_of_lamella(unit: configparser.ConfigParser, capsys: pytest.CaptureFixture[str]) -> None:
    _, command, target, *options = unit["Service"]["ExecStart"].split()
    assert (command, target) == ("serve", "${LAMELLA_STORE}")
    assert options[options.index("--keys") + 1] == "${CREDENTIALS_DIRECTORY}/keys"
    capsys.readouterr()
    assert main(["serve", "--help"]) == 0
    help_text = capsys.readouterr().out
    assert all(option in help_text for option in options if option.startswith("--"))


def test_what_another_start_cannot_mend_is_not_tried_again(unit: configparser.ConfigParser) -> None:
    codes = unit["Service"]["RestartPreventExitStatus"].split()
    assert codes == [str(error.exit_code) for error in (InvalidRequest, ModelError, StoreError, LibraryError)]
