"""Builders that are interrupted, and builders that meet; tests/store/test_crashes.py has those that die."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamella.llama.gguf import ModelFile, read_model
from lamella.quantize.build import build_variant
from lamella.store.store import Store
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]
N_LAYERS = 6
BUILDER = """
import sys, time
from pathlib import Path
from lamella.llama.gguf import read_model
from lamella.quantize.build import build_variant
from lamella.store.store import Store
from tests.fakes.plans import make_plan

model, folder, pause_s, name = sys.argv[1:]
source = read_model(Path(model))
store = Store.create(Path(folder), source.spec.identity)
print("ready", flush=True)
sys.stdin.readline()
report = build_variant(source, make_plan(source.spec, "int4"), store, name,
                       on_progress=lambda _: time.sleep(float(pause_s)))
print(report.n_shards, report.n_shards - report.n_reused, flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    return read_model(write_tiny_model(path, n_layers=N_LAYERS, n_embd=64, n_ff=128))


def start_builder(model: ModelFile, folder: Path, pause_s: float = 0.0, name: str = "v") -> subprocess.Popen[str]:
    """A builder process that waits, ready, for a line on its standard input."""
    arguments = [sys.executable, "-c", BUILDER, str(model.paths[0]), str(folder), str(pause_s), name]
    pipe = subprocess.PIPE
    builder = subprocess.Popen(arguments, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert builder.stdout is not None
    assert builder.stdout.readline() == "ready\n", builder.communicate()[1]
    return builder


def go(builder: subprocess.Popen[str]) -> None:
    assert builder.stdin is not None
    builder.stdin.write("\n")
    builder.stdin.flush()


def test_ctrl_c_ends_a_builder_cleanly(model: ModelFile, tmp_path: Path) -> None:
    builder = start_builder(model, tmp_path / "store", pause_s=0.1)
    go(builder)
    while not list((tmp_path / "store").glob("shards/*/*.gguf")):
        time.sleep(0.005)
    builder.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in builder.communicate()[1]
    assert builder.returncode != 0
    store = Store.open(tmp_path / "store")
    assert store.verify().ok
    assert list((store.path / "incoming").iterdir()) == []
    assert build_variant(model, make_plan(model.spec, "int4"), store, "v").n_reused > 0


@pytest.mark.parametrize("names", [("v", "v"), ("a", "b")])
def test_two_builders_at_once_both_succeed_and_make_no_shard_twice(
    model: ModelFile, tmp_path: Path, names: tuple[str, str]
) -> None:
    builders = [start_builder(model, tmp_path / "store", 0.001, name) for name in names]
    for builder in builders:
        go(builder)
    n_made = 0
    for builder in builders:
        out, err = builder.communicate()
        assert builder.returncode == 0, err
        n_shards, n_made_by_this = map(int, out.split())
        assert n_shards == N_LAYERS + 3
        n_made += n_made_by_this
    assert n_made == N_LAYERS + 3
    store = Store.open(tmp_path / "store")
    assert [v.name for v in store.variants()] == sorted(set(names))
    report = store.verify()
    assert report.ok
    assert report.n_shards == N_LAYERS + 3
    assert list((store.path / "incoming").iterdir()) == []
