"""Every file of ``examples/`` against a live server: they are what people copy."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import LiveServer

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "chat.py": r"Paris",
    "stream.py": r"\S\s*\n[1-9]\d* tokens read, ([1-9]|[1-5]\d|60) written\n$",  # at random: the end may come before 60
    "tools.py": r"rain, 11 degrees",
    "schema.py": r"'profession': ",
    "embeddings.py": r"1\.000  The cat sat on the mat\.",
    "variants.py": r"uniform-int8 -> uniform-int4 in ",
}
"""Patterns of what each prints."""


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}`" in listed for name in (*SAYS, "curl.sh"))


@pytest.mark.parametrize("name", SAYS)
def test_an_example(live_server: LiveServer, name: str) -> None:
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, env=live_server.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[name], done.stdout), done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_same_with_curl(live_server: LiveServer) -> None:
    command = ["bash", str(EXAMPLES / "curl.sh")]
    done = subprocess.run(command, env=live_server.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = dict(part.split("\n", 1) for part in done.stdout.split("# ")[1:])
    assert [m["id"] for m in json.loads(parts["models"])["data"]] == [
        "smollm2", "smollm2@uniform-int8", "smollm2@uniform-int4"
    ]  # fmt: skip
    assert parts["a stream"].strip().endswith("data: [DONE]")
    at_variant = next(text for title, text in parts.items() if title.startswith("text that goes on"))
    assert json.loads(at_variant)["model"] == "smollm2@uniform-int4"
    content = json.loads(parts["JSON that follows a schema"])["choices"][0]["message"]["content"]
    assert isinstance(json.loads(content)["age"], int)
    there, back = parts["another variant for everybody, and back"].strip().splitlines()
    assert (json.loads(there)["after"], json.loads(back)["after"]) == ("uniform-int4", "uniform-int8")
    assert 'kind="generated"' in parts["figures for Prometheus"]


def test_the_command_line_chats_and_switches_while_it_answers(live_server: LiveServer) -> None:
    typed = "Tell me about Rome.\n/switch uniform-int4\nAnd about Athens.\n/switch uniform-int8\n/exit\n"
    options = ["--url", live_server.url, "--max-tokens", "40", "--temperature", "0"]
    command = [sys.executable, "-m", "lamella", "chat", *options]
    environment = {**live_server.environment(), "LAMELLA_API_KEY": live_server.key}
    done = subprocess.run(
        command, input=typed, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert "uniform-int8 -> uniform-int4" in done.stderr
    assert done.stderr.count("[smollm2: prompt of") == 2
    assert len(done.stdout) > 60
