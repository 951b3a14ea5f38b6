"""Tuned rounding: never worse than ggml's on the covariance it is given, ggml's own where inputs are independent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lamella.core.errors import InvalidRequest, VariantExists
from lamella.core.precision import GGML_TYPES
from lamella.llama.blas import one_blas_thread
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.quantize import check_stored_rows, decode_rows, encode_rows, prepare
from lamella.quantize import build, tuned
from lamella.quantize.build import TUNING_SETTING, build_variant
from lamella.quantize.recipe import shard_jobs
from lamella.quantize.tuned import Feedback, Tuning
from lamella.store.store import Store
from tests.fakes.matrices import make_matrix
from tests.fakes.plans import make_plan

Matrix = NDArray[np.float32]
WRITTEN = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ3_XXS",
    "IQ2_XXS", "MXFP4",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _tables() -> None:
    for name in WRITTEN:
        prepare(GGML_TYPES[name])


def correlated(n: int, seed: int, rank: int = 8) -> Matrix:
    """Covariance of inputs that mostly live in a few directions."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((4 * n, rank)) @ random.standard_normal((rank, n))
    inputs += 0.3 * random.standard_normal(inputs.shape)
    covariance: Matrix = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    return covariance


def some_rows(n_rows: int, n: int, seed: int) -> Matrix:
    return np.random.default_rng(seed).standard_normal((n_rows, n)).astype(np.float32)


def losses_of(errors: Matrix, covariance: Matrix) -> NDArray[np.float64]:
    """e H e^T by the definition, in float64."""
    wide = errors.astype(np.float64)
    found: NDArray[np.float64] = np.einsum("ri,ij,rj->r", wide, covariance.astype(np.float64), wide)
    return found


def test_losses_are_those_of_the_shrunk_and_damped_covariance() -> None:
    covariance, errors = correlated(96, seed=1), some_rows(5, 96, seed=2)
    variances = covariance.diagonal() + tuned.DAMPING * covariance.diagonal().mean()
    expected = (1 - tuned.SHRINKAGE) * covariance
    np.fill_diagonal(expected, variances)
    np.testing.assert_allclose(Feedback.of(covariance).losses(errors), losses_of(errors, expected), rtol=1e-3)


@pytest.mark.parametrize("name", WRITTEN)
def test_correlated_inputs_make_every_type_err_less(name: str) -> None:
    ggml_type, n = GGML_TYPES[name], 512
    covariance, rows = correlated(n, seed=3), some_rows(24, n, seed=4)
    feedback = Feedback.of(covariance)
    stored = tuned.encode_rows(rows, ggml_type, feedback)
    check_stored_rows(stored, ggml_type, name)
    plain = encode_rows(rows, ggml_type, feedback.importance)
    ours, theirs = (losses_of(rows - decode_rows(data, ggml_type, n), covariance).sum() for data in (stored, plain))
    assert ours < 0.8 * theirs


@settings(deadline=None, max_examples=40)  # matrices of 256 take as long as the machine is busy
@given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from(["Q4_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q4_K"]),
    rank=st.integers(1, 256),
    dead=st.integers(0, 256),
)
def test_no_row_loses_more_than_under_ggmls_rounding(seed: int, name: str, rank: int, dead: int) -> None:
    ggml_type, n = GGML_TYPES[name], 256 if "K" in name else 64
    covariance, rows = correlated(n, seed, rank), some_rows(3, n, seed + 1)
    covariance[:dead] = covariance[:, :dead] = 0
    feedback = Feedback.of(covariance)
    ours, theirs = (
        feedback.losses(rows - decode_rows(data, ggml_type, n))
        for data in (tuned.encode_rows(rows, ggml_type, feedback), encode_rows(rows, ggml_type, feedback.importance))
    )
    assert (ours <= theirs * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", ["Q4_K", "Q2_K", "IQ4_NL", "Q8_0", "Q5_K"])
def test_independent_inputs_leave_ggmls_rounding_under_their_importance(name: str) -> None:
    ggml_type, rows = GGML_TYPES[name], some_rows(4, 512, seed=5)
    for covariance in (np.eye(512), np.zeros((512, 512)), np.diag(np.random.default_rng(0).exponential(1, 512))):
        feedback = Feedback.of(covariance.astype(np.float32))
        expected = encode_rows(rows, ggml_type, feedback.importance)
        np.testing.assert_allclose(
            decode_rows(tuned.encode_rows(rows, ggml_type, feedback), ggml_type, 512),
            decode_rows(expected, ggml_type, 512),
            rtol=1e-3,
            atol=1e-3,
        )


def test_inputs_that_go_together_within_a_block_only_leave_ggmls_rounding_of_the_block() -> None:
    covariance, rows, q4 = np.zeros((512, 512), np.float32), some_rows(4, 512, seed=8), GGML_TYPES["Q4_K"]
    for start in (0, 256):
        covariance[start : start + 256, start : start + 256] = correlated(256, seed=start)
    feedback = Feedback.of(covariance)
    expected = encode_rows(rows, q4, feedback.importance)
    assert (tuned.encode_rows(rows, q4, feedback) == expected).mean() > 0.99


def test_rows_are_rounded_each_for_itself() -> None:
    feedback, rows = Feedback.of(correlated(128, seed=6)), some_rows(6, 128, seed=7)
    q4 = GGML_TYPES["Q4_0"]
    together = decode_rows(tuned.encode_rows(rows, q4, feedback), q4, 128)
    alone = [decode_rows(tuned.encode_rows(rows[i : i + 1], q4, feedback), q4, 128)[0] for i in range(6)]
    np.testing.assert_allclose(together, np.array(alone), atol=0.05)


def fake_tuning(source: ModelFile, identity: str = "a" * 64, asked: list[Sequence[int]] | None = None) -> Tuning:
    """Covariances of random inputs, one for each row length."""
    made = {n: correlated(n, seed=n) for n in {t.row_length for t in source.spec.tensors if t.is_matrix}}

    def gather(layers: Sequence[int]) -> Mapping[str, Matrix]:
        if asked is not None:
            asked.append(layers)
        return {t.name: made[t.row_length] for t in source.spec.tensors if t.is_matrix and t.layer in layers}

    return Tuning(identity, gather)


def values_in(source: ModelFile, name: str) -> Matrix:
    tensor = source.tensors[name]
    data = np.fromfile(tensor.path, np.uint8, tensor.n_bytes, offset=tensor.offset)
    return decode_rows(data, tensor.spec.type, tensor.spec.row_length)


@pytest.mark.parametrize("precision", ["int4", "int2", "Q5_0", "IQ2_XXS"])
def test_a_variant_holds_tuned_layers_and_plain_embedding_and_head(
    tiny: ModelFile, store: Store, precision: str
) -> None:
    plan = make_plan(tiny.spec, precision)
    built = build_variant(tiny, plan, store, "v", tuning=fake_tuning(tiny)).variant
    assert built.plan.settings[TUNING_SETTING] == "a" * 64
    made = read_model(store.first_link("v"))
    for name in ("blk.0.attn_q.weight", "blk.2.ffn_down.weight", "token_embd.weight"):
        rows, ggml_type = values_in(tiny, name), made.tensors[name].spec.type
        feedback = Feedback.of(correlated(rows.shape[1], seed=rows.shape[1]))
        with one_blas_thread():  # as builds do; more may add in another order
            tuned_data = tuned.encode_rows(rows, ggml_type, feedback) if name.startswith("blk") else None
        data = encode_rows(rows, ggml_type) if tuned_data is None else tuned_data
        np.testing.assert_array_equal(values_in(made, name), decode_rows(data, ggml_type, rows.shape[1]))


def test_what_was_tuned_is_found_again_and_not_taken_for_other_text(tiny: ModelFile, store: Store) -> None:
    plan, asked = make_plan(tiny.spec, ["int4", "fp16", "int4"]), list[Sequence[int]]()
    build_variant(tiny, plan, store, "plain")
    first = build_variant(tiny, plan, store, "v", tuning=fake_tuning(tiny, asked=asked))
    assert (first.n_reused, asked) == (4, [[0, 2]])  # meta, the copied layer, embedding and head are shared
    again = build_variant(tiny, plan, store, "v", tuning=fake_tuning(tiny, asked=asked))
    assert (again.n_reused, len(asked)) == (6, 1)
    other = build_variant(tiny, plan, store, "w", tuning=fake_tuning(tiny, "b" * 64))
    assert other.n_reused == 4
    for tuning in (None, fake_tuning(tiny, "b" * 64)):
        with pytest.raises(VariantExists):
            build_variant(tiny, plan, store, "v", tuning=tuning)


def test_covariances_come_in_batches_and_threads_change_no_byte(
    tiny: ModelFile, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, asked = make_plan(tiny.spec, "int4"), list[Sequence[int]]()
    one = build_variant(tiny, plan, store, "one", tuning=fake_tuning(tiny), n_threads=1).variant
    for path in (store.path / "recipes").rglob("*.json"):
        path.unlink()
    monkeypatch.setattr(build, "BATCH_BYTES", 1)
    many = build_variant(tiny, plan, store, "many", tuning=fake_tuning(tiny, asked=asked), n_threads=5).variant
    assert asked == [[0], [1], [2]]
    assert many.shards == one.shards


def test_weights_without_covariance_are_rounded_plainly(tiny: ModelFile, store: Store) -> None:
    full = fake_tuning(tiny)
    sparse = Tuning("c" * 64, lambda layers: {n: c for n, c in full.gather(layers).items() if "attn_q" in n})
    build_variant(tiny, make_plan(tiny.spec, "Q4_K"), store, "v", tuning=sparse)
    made, name = read_model(store.first_link("v")), "blk.0.attn_k.weight"
    expected = decode_rows(encode_rows(values_in(tiny, name), GGML_TYPES["Q4_K"]), GGML_TYPES["Q4_K"], 256)
    np.testing.assert_array_equal(values_in(made, name), expected)


def test_tuning_is_refused_where_it_has_no_meaning(tiny: ModelFile) -> None:
    with pytest.raises(InvalidRequest, match="scheme channel is not tuned on text"):
        shard_jobs(tiny, make_plan(tiny.spec, "int4", scheme="channel"), None, fake_tuning(tiny))
    with pytest.raises(InvalidRequest, match="not both"):
        shard_jobs(tiny, make_plan(tiny.spec, "int4"), make_matrix(tiny.spec), fake_tuning(tiny))
