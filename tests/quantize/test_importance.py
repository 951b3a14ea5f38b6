"""Building with an importance matrix: bytes, recipes and refusals."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lamella.core.errors import InvalidRequest, UnsupportedTensor, VariantExists
from lamella.core.model import TensorSpec
from lamella.core.precision import GGML_TYPES
from lamella.llama.gguf import ModelFile, TensorData, read_model
from lamella.llama.imatrix import serialise_imatrix
from lamella.llama.quantize import encode_rows
from lamella.quantize.build import build_variant
from lamella.quantize.recipe import IGNORE_IMPORTANCE, shard_jobs
from lamella.quantize.tensor import Conversion, SourceFiles, chunks_of, convert_chunk, prepare
from lamella.store.sources import IMPORTANCE_SETTING
from lamella.store.store import Store
from tests.fakes.matrices import make_matrix
from tests.fakes.plans import make_plan

RIVAL = os.environ.get("LAMELLA_RIVAL")


def data_of(tensor: TensorData) -> NDArray[np.uint8]:
    return np.fromfile(tensor.path, np.uint8, tensor.n_bytes, offset=tensor.offset)


@pytest.mark.parametrize("precision", ["int4", "int2", "IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"])
def test_blocks_hold_ggmls_rounding_under_the_matrix(tiny: ModelFile, store: Store, precision: str) -> None:
    matrix = make_matrix(tiny.spec)
    build_variant(tiny, make_plan(tiny.spec, precision), store, "v", importance=matrix)
    built = read_model(store.first_link("v")).tensors
    for name in ("blk.0.attn_q.weight", "blk.2.ffn_down.weight"):
        spec, values = built[name].spec, matrix.values(name)
        rows = data_of(tiny.tensors[name]).view(np.float16).astype(np.float32).reshape(spec.n_rows, -1)
        assert values is not None
        np.testing.assert_array_equal(data_of(built[name]), encode_rows(rows, spec.type, values[0]))
        if spec.type.writable:
            assert not np.array_equal(data_of(built[name]), encode_rows(rows, spec.type))


def test_each_expert_is_rounded_under_its_own_importance(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((3 * 8, 256)).astype(np.float32)
    (tmp_path / "t").write_bytes(rows.tobytes())
    importance = random.exponential(1, (3, 256)).astype(np.float32)
    spec = TensorSpec("blk.0.ffn_up_exps.weight", (256, 8, 3), "F32")
    q4 = GGML_TYPES["Q4_K"]
    conversion = Conversion(TensorData(spec, tmp_path / "t", 0, spec.n_bytes), q4, None, importance)
    prepare([conversion])
    with SourceFiles() as files:
        found = b"".join(convert_chunk(chunk, files) for chunk in chunks_of(conversion, n_threads=2))
    expected = [encode_rows(rows[8 * i : 8 * i + 8].copy(), q4, importance[i].copy()).tobytes() for i in range(3)]
    assert found == b"".join(expected)


def test_types_that_ignore_importance_are_those_that_ggml_rounds_alike() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((4, 256)).astype(np.float32)
    importance = random.exponential(1, 256).astype(np.float32) ** 3
    for ggml_type in GGML_TYPES.values():
        if not ggml_type.writable or ggml_type.name == "F32":
            continue
        alike = np.array_equal(encode_rows(rows, ggml_type), encode_rows(rows, ggml_type, importance))
        if ggml_type.name in IGNORE_IMPORTANCE:
            assert alike, ggml_type.name
        elif ggml_type.name.startswith(("Q2_K", "Q3_K", "Q4", "Q5", "Q6_K", "IQ")):
            assert not alike, ggml_type.name


def test_the_matrix_is_part_of_the_recipes_of_tensors_that_use_it_and_of_no_other(tiny: ModelFile) -> None:
    plan = make_plan(tiny.spec, ["int4", "int8", "int4"])
    one, two = make_matrix(tiny.spec, seed=1), make_matrix(tiny.spec, seed=2)
    plain, first, again, second = (
        [job.recipe_id for job in shard_jobs(tiny, plan, matrix)]
        for matrix in (None, one, make_matrix(tiny.spec, seed=1), two)
    )
    assert first == again
    for a, b in ((plain, first), (first, second)):
        assert [x == y for x, y in zip(a, b, strict=True)] == [True, False, True, False, True, True]


def test_a_variant_says_which_matrix_it_used(tiny: ModelFile, store: Store) -> None:
    plan = make_plan(tiny.spec, ["int4", "int8", "int8"])
    one, two = make_matrix(tiny.spec, seed=1), make_matrix(tiny.spec, seed=2)
    made = build_variant(tiny, plan, store, "one", importance=one)
    assert len(str(made.variant.plan.settings[IMPORTANCE_SETTING])) == 64
    other = build_variant(tiny, plan, store, "two", importance=two)
    assert made.variant.plan.settings != other.variant.plan.settings
    assert (other.n_reused, other.n_shards) == (5, 6)
    unused = build_variant(tiny, make_plan(tiny.spec, "int8"), store, "eight", importance=one)
    assert IMPORTANCE_SETTING not in unused.variant.plan.settings


def test_a_name_taken_by_another_matrix_is_refused_and_the_same_costs_nothing(tiny: ModelFile, store: Store) -> None:
    plan, one = make_plan(tiny.spec, "IQ2_XXS"), make_matrix(tiny.spec, seed=1)
    build_variant(tiny, plan, store, "v", importance=one)
    assert build_variant(tiny, plan, store, "v", importance=one).written_bytes == 0
    with pytest.raises(VariantExists):
        build_variant(tiny, plan, store, "v", importance=make_matrix(tiny.spec, seed=2))
    with pytest.raises(VariantExists):
        build_variant(tiny, make_plan(tiny.spec, "int4"), store, "v")


def test_what_cannot_be_built_is_refused_with_the_facts(tiny: ModelFile) -> None:
    matrix = make_matrix(tiny.spec)
    with pytest.raises(InvalidRequest, match="scheme channel does not use an importance matrix"):
        shard_jobs(tiny, make_plan(tiny.spec, "int4", scheme="channel"), matrix)
    plan = make_plan(tiny.spec, "int4", outside="IQ1_M")
    with pytest.raises(UnsupportedTensor, match="IQ1_M needs an importance matrix that knows this tensor"):
        shard_jobs(tiny, plan, matrix)  # embedding and head are not in it
    assert shard_jobs(tiny, plan, make_matrix(tiny.spec, layers_only=False))


@pytest.mark.skipif(not RIVAL, reason="LAMELLA_RIVAL names no folder with llama-quantize")
@pytest.mark.parametrize("mix", ["Q4_K", "Q2_K", "Q5_0", "IQ4_XS", "IQ2_XXS", "IQ1_S"])
def test_tensors_are_those_of_llama_quantize_under_the_same_matrix(
    tiny: ModelFile, store: Store, tmp_path: Path, mix: str
) -> None:
    matrix = make_matrix(tiny.spec)
    (tmp_path / "m.gguf").write_bytes(serialise_imatrix(matrix))
    out = tmp_path / "rival.gguf"
    options = ["--imatrix", str(tmp_path / "m.gguf"), "--pure", "--token-embedding-type", "q8_0"]
    command = [f"{RIVAL}/llama-quantize", *options, "--output-tensor-type", "q8_0", str(tiny.paths[0]), str(out)]
    subprocess.run([*command, mix, "2"], check=True, capture_output=True, timeout=120)
    build_variant(tiny, make_plan(tiny.spec, mix), store, "v", importance=matrix)
    rival, ours = read_model(out).tensors, read_model(store.first_link("v")).tensors
    n_equal = 0
    for name, tensor in rival.items():
        if tensor.spec.type_name == ours[name].spec.type_name == mix:
            np.testing.assert_array_equal(data_of(tensor), data_of(ours[name]), name)
            n_equal += 1
    assert n_equal == 21
