"""The commands of docs/tutorial.md, as they are printed, in an empty folder with an empty home."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lamella.core.errors import DoesNotFit, ModelError
from lamella.resources.catalogue import model_path

pytestmark = pytest.mark.slow
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
PORT = 8080
_BLOCK = re.compile(r"(?:<!-- test: (?P<note>[^\n]*) -->\n)?```sh\n(?P<commands>.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of commands."""

    commands: str
    is_server: bool
    exit_code: int


def blocks() -> list[Block]:
    """Of the tutorial, in order."""
    found = []
    for match in _BLOCK.finditer(TUTORIAL.read_text()):
        note = match["note"] or ""
        code = re.search(r"fails with code (\d+)", note)
        found.append(Block(match["commands"], "goes on" in note, int(code[1]) if code else 0))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """An empty folder, and an environment with an empty home in which ``lamella`` is on the path."""
    try:
        model_path("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError as error:
            pytest.skip(f"port {PORT}, which the tutorial's server takes, is not free: {error}")
    root = tmp_path_factory.mktemp("tutorial")
    for name in ("home", "bin", "here"):
        (root / name).mkdir()
    program = root / "bin" / "lamella"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lamella "$@"\n')
    program.chmod(0o755)
    kept = ("PYTHONPATH", "LANG", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HOME": str(root / "home"), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    return root / "here", environment


@pytest.mark.timeout(1200)  # half a minute on two idle cores; busy ones take their time
def test_its_commands_run_as_printed(place: tuple[Path, dict[str, str]]) -> None:
    """With the exit code that the page promises, and nothing that looks like a fault of ours."""
    here, environment = place
    printed = ""
    with ExitStack() as stack:
        for block in blocks():
            if block.is_server:
                stack.enter_context(running(block.commands, here, environment))
                continue
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.commands],
                cwd=here, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == block.exit_code, f"{block.commands}\n{done.stdout}\n{done.stderr}"
            printed += done.stdout
    assert printed.count("blue") >= 3, printed  # one variant, a switch, and curl; lamella chat draws its words
    variants, _ = json.JSONDecoder().raw_decode(printed, printed.index('{"variants"'))
    assert [one["name"] for one in variants["variants"] if one["running"]] == ["alpha-0.5"]
    assert (here / "alpha.gguf").read_bytes()[:4] == b"GGUF"
    assert (here / "importance.json").exists()


def test_the_page_has_what_its_test_needs() -> None:
    found = blocks()
    assert len(found) >= 9
    assert [block.exit_code for block in found if block.exit_code] == [DoesNotFit.exit_code]
    assert sum(block.is_server for block in found) == 1


@contextmanager
def running(command: str, here: Path, environment: dict[str, str]) -> Iterator[None]:
    """The server, until the rest is done; Ctrl-C ends it, as the page says."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=here, env=environment, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        started = time.monotonic()
        said = ""
        while "listening on" not in said and time.monotonic() - started < 120:
            line = server.stderr.readline()
            assert line, said
            said += line
        try:
            yield
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(60) in (0, 130)
