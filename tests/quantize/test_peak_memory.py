"""A build's peak memory stays under one layer in F32 and 200 MB, however large a single tensor is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from lamella.llama.gguf import ModelFile, read_model

ROOT = Path(__file__).parents[2]
N_EMBD, N_VOCAB = 1024, 128 * 1024
MATRICES = {"token_embd.weight": N_VOCAB, "blk.0.attn_q.weight": N_EMBD, "blk.0.ffn_up.weight": N_EMBD}

# VmHWM and not ru_maxrss: the latter is inherited over fork and exec, so it would be that of pytest
BUILDER = """
import re, sys
from pathlib import Path
from lamella.llama import library
from lamella.llama.gguf import read_model
from lamella.quantize.build import build_variant
from lamella.store.store import Store
from tests.fakes.plans import make_plan

def status(field):
    return 1024 * int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

model, folder, scheme = sys.argv[1:]
source = read_model(Path(model))
store = Store.create(Path(folder), source.spec.identity)
before = status("VmRSS")
build_variant(source, make_plan(source.spec, "int4", scheme=scheme), store, "v")
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """One small layer and an embedding of 537 MB in F32; F16 zeros, so the file takes no space on the disk."""
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    for name, n_rows in MATRICES.items():
        writer.add_tensor_info(name, (n_rows, N_EMBD), np.dtype(np.float16), 2 * n_rows * N_EMBD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2 * N_EMBD * sum(MATRICES.values()) + 4096)
    return read_model(path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("scheme", ["block", "channel"])
def test_a_tensor_larger_than_the_bound_is_streamed(wide: ModelFile, tmp_path: Path, scheme: str) -> None:
    layer_bytes = 4 * wide.spec.layers[0].n_weights
    bound = layer_bytes + 200_000_000
    assert 4 * wide.spec.tensor("token_embd.weight").n_weights > 2 * bound
    child = subprocess.run(
        [sys.executable, "-c", BUILDER, str(wide.paths[0]), str(tmp_path / "store"), scheme],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) < bound
