"""Stock llama.cpp, built from the same sources, opens every variant of a ladder from its folder of links."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import lamella
from lamella import api
from lamella.core.artifacts import Measurement
from lamella.store.store import Store
from tests.fakes.ports import free_port
from tests.fakes.tiny_model import write_tiny_model
from tests.planning.losses import made_losses

RIVAL = os.environ.get("LAMELLA_RIVAL")
pytestmark = pytest.mark.skipif(not RIVAL, reason="LAMELLA_RIVAL names no folder with llama-server")
STARTS_WITHIN_S = 240


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A ladder of three steps that share layers."""
    folder = tmp_path_factory.mktemp("stock")
    model = write_tiny_model(folder / "tiny.gguf", n_embd=256, n_ff=512, n_layers=4)
    spec = api.load(model).spec
    measured = Measurement("sensitivity", spec.identity, {}, (), (), tensors=made_losses(spec))
    ladder = api.ladder(model, measured, steps=3, first_bits=8.5, last_bits=5, budget="1.5x")
    for i, step in enumerate(ladder.steps):
        lamella.build(model, folder / "store", step.plan, f"step-{i + 1}")
    return Store.open(folder / "store")


def tool(name: str) -> Path:
    path = Path(RIVAL or "") / name
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    return path


@pytest.mark.parametrize("name", ["step-1", "step-2", "step-3"])
def test_llama_perplexity_reads_every_variant(store: Store, name: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten " * 40)
    # -nr: without repacked copies, as ``evaluate``; the kernels of both round differently (0.6 % with AVX-512)
    options = ["-c", "32", "--chunks", "2", "-t", "1", "-nr"]
    done = subprocess.run(
        [tool("llama-perplexity"), "-m", store.first_link(name), "-f", text, *options],
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
    assert found, done.stderr[-2000:]
    ours = lamella.evaluate(store.path, [name], lamella.Exams(text=text, n_windows=2, window_tokens=32))
    row = ours.rows[name].text
    assert row is not None
    assert row.perplexity.value == pytest.approx(float(found.group(1)), rel=1e-3)


def test_llama_server_serves_a_variant(store: Store) -> None:
    port = free_port()
    server_tool, link = str(tool("llama-server")), str(store.first_link("step-2"))
    command = [server_tool, "-m", link, "--port", str(port), "-c", "64", "-t", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        answer = _ask(port, server)
    finally:
        server.terminate()
        server.wait()
    assert answer["tokens_predicted"] == 4


def _ask(port: int, server: subprocess.Popen[bytes]) -> dict[str, object]:
    """Four tokens, as soon as the server is ready."""
    body = json.dumps({"prompt": "Hello", "n_predict": 4, "temperature": 0, "ignore_eos": True}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", body, {"Content-Type": "application/json"})
    end = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                found: dict[str, object] = json.load(response)
                return found
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"llama-server did not answer (exit code {server.poll()})")
