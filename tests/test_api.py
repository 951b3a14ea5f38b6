"""The Python API tells the story: measure, plan, build, run, switch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import lamella
from lamella import api
from lamella.core.artifacts import to_json
from lamella.core.errors import ArtifactError, DoesNotFit, InvalidRequest
from lamella.llama.gguf import TensorData, read_model
from tests.fakes.matrices import make_matrix
from tests.fakes.tiny_model import EOS, write_tiny_model

RIVAL = os.environ.get("LAMELLA_RIVAL")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("api") / "tiny.gguf", n_embd=256, n_ff=512)


def test_the_story(model: Path, tmp_path: Path) -> None:
    measurement = lamella.measure(model, "jaccard", settings=lamella.MeasureSettings(samples=2, window_tokens=16))
    for alpha in (0.3, 0.9):
        plan = lamella.plan(model, "alpha", alpha=alpha, measurement=measurement)
        lamella.build(model, tmp_path / "store", plan)
    store = lamella.Store.open(tmp_path / "store")
    options = lamella.EngineOptions(lamella.ContextOptions(n_ctx=64, n_threads=1), layout="mapped")
    with lamella.Engine.open(store, "alpha-0.9", options) as engine:
        endless = lamella.SamplingOptions(logit_bias={EOS: -100.0})
        generation = engine.generate("a b c", max_tokens=6, sampling=endless)
        next(generation)
        engine.switch("alpha-0.3")
        assert [t.variant for t in generation if t.id >= 0] == ["alpha-0.3"] * (generation.stats.n_generated - 1)
        assert generation.stats.n_generated == 6


def test_every_public_name_is_there() -> None:
    for name in lamella.__all__:
        assert getattr(lamella, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        lamella.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_plan_is_a_knapsack_unless_something_speaks_against_it(model: Path) -> None:
    settings = lamella.MeasureSettings(samples=2, window_tokens=16)
    losses = lamella.measure(model, "sensitivity", settings=settings)
    layers = lamella.measure(model, "outlier")
    plan = lamella.plan(model, bits_per_weight=5.0, measurement=losses)
    assert (plan.policy, plan.settings["metric"]) == ("knapsack", "sensitivity")
    assert plan.predicted_loss == pytest.approx(
        sum(t.by_type[plan.tensors[t.tensor]] for t in losses.tensors), rel=1e-6
    )
    assert api.default_policy(model) == "knapsack"
    assert lamella.plan(model, bits_per_weight=9.0, measurement=layers).policy == "lsaq"
    assert lamella.plan("spec:llama-2-7b", memory="6GiB").policy == "lsaq"
    assert api.default_policy(model, "channel") == "lsaq"


def test_a_measurement_of_other_weights_is_refused(model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", n_embd=256, n_ff=512, seed=1)
    outliers = lamella.measure(other, "outlier")
    assert lamella.plan(other, "lsaq", average_bits=6, measurement=outliers).average_bits <= 6
    with pytest.raises(ArtifactError, match="other weights of tiny"):
        lamella.plan(model, "lsaq", average_bits=6, measurement=outliers)


def test_what_a_plan_measures_is_measured_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = lamella.MeasureSettings(samples=2, window_tokens=16)
    first = api.measure_once(model, "sensitivity", tmp_path, settings=settings)
    other = api.measure_once(model, "sensitivity", tmp_path, settings=lamella.MeasureSettings(samples=3))
    assert len(other.texts) == 1
    assert other.settings["samples"] == 3
    assert len(list(tmp_path.rglob("*.json"))) == 2
    assert not list(tmp_path.rglob("*.probes"))
    monkeypatch.setattr("lamella.api.measuring.measure", lambda *_, **__: pytest.fail("measured again"))
    assert to_json(api.measure_once(model, "sensitivity", tmp_path, settings=settings)) == to_json(first)
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")  # a broken cache is no reason to fail
    monkeypatch.undo()
    assert api.measure_once(model, "sensitivity", tmp_path, settings=settings).tensors == first.tensors


def test_lsaq_measures_what_it_needs(model: Path) -> None:
    """Without a measurement the layers' importance comes from text that the model writes."""
    plan = lamella.plan(model, "lsaq", memory="1GiB", context=64)
    assert plan.settings["metric"] == "jaccard"
    assert plan.bytes.kv_cache > 0
    assert plan.bytes.compute > 0
    assert plan.fits


def test_the_context_takes_its_memory(model: Path) -> None:
    small, large = (lamella.plan(model, "uniform", precision="int8", context=n) for n in (256, 2048))
    assert large.bytes.kv_cache == 8 * small.bytes.kv_cache
    assert large.bytes.weights == small.bytes.weights


def test_uniform_without_precision_takes_the_largest_that_fits(model: Path) -> None:
    fp16 = lamella.plan(model, "uniform", precision="fp16", context=64).bytes
    fits = lamella.plan(model, "uniform", memory=fp16.total, context=64)
    assert {x.precision for x in fits.layers} == {"fp16"}
    less = lamella.plan(model, "uniform", memory=fp16.total - 1, context=64)
    assert {x.precision for x in less.layers} == {"int8"}


def test_waiting_plans_as_soon_as_memory_is_free(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1, 2, 8 << 30])
    monkeypatch.setattr(api.Budget, "now", lambda _: next(free))
    refused: list[int] = []
    plan = lamella.plan(
        model, "uniform", wait=True, context=64, on_wait=lambda w: refused.append(w.reason.budget_bytes)
    )
    assert refused == [1, 2]
    assert plan.budget_bytes == 8 << 30


def test_what_exceeds_its_own_limit_is_not_waited_for(model: Path) -> None:
    with pytest.raises(DoesNotFit):
        lamella.plan(model, "uniform", memory=1000, wait=True, context=64)


def test_a_plan_of_another_model_builds_nothing(model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", n_layers=2, n_embd=256, n_ff=512, name="other")
    plan = lamella.plan(other, "uniform", precision="int8")
    with pytest.raises(ArtifactError, match="is for other"):
        lamella.build(model, tmp_path / "store", plan)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("memory", [0, -5, "0", "-1GiB", ""])
def test_a_budget_must_be_more_than_nothing(model: Path, memory: int | str) -> None:
    with pytest.raises(InvalidRequest):
        lamella.plan(model, "uniform", memory=memory)


def test_specifications_need_no_weights() -> None:
    plan = lamella.plan("spec:llama-3-8b", "alpha", alpha=0.5, context=8192)
    assert len(plan.layers) == 32
    assert plan.bytes.kv_cache == 8192 * 32 * 2 * 1024 * 2


@pytest.mark.parametrize(("policy", "metric"), [("lwq-cosine", "cosine"), ("lwq-outlier", "outlier")])
def test_each_policy_is_measured_by_its_own_metric(model: Path, policy: str, metric: str) -> None:
    plan = lamella.plan(model, policy, average_bits=7, context=64)
    assert plan.settings["metric"] == metric
    assert plan.average_bits <= 7
    assert plan.budget_bytes is None
    assert api.default_name(plan) == f"{policy}-7bits"


def test_a_policy_named_by_a_metric_refuses_a_measurement_by_another(model: Path) -> None:
    outliers = lamella.measure(model, "outlier")
    assert lamella.plan(model, "lwq-outlier", average_bits=6, measurement=outliers).settings["metric"] == "outlier"
    assert lamella.plan(model, "lsaq", average_bits=6, measurement=outliers).settings["metric"] == "outlier"
    with pytest.raises(InvalidRequest, match="by cosine, and the measurement is of outlier"):
        lamella.plan(model, "lwq-cosine", average_bits=6, measurement=outliers)


def test_names_say_how_large_a_plan_may_be(model: Path) -> None:
    for arguments, name in (
        ({"policy": "random", "average_bits": 6.5, "seed": 3}, "random-seed3-6.5bits"),
        ({"policy": "random", "bits_per_weight": 9}, "random-9bpw"),
        ({"policy": "random", "memory": "1GiB", "scheme": "channel"}, "random-1.00GiB-channel"),
        ({"policy": "uniform", "average_bits": 5.5}, "uniform-int5"),
        ({"policy": "stock", "mix": "q4_k"}, "stock-q4_k_m"),
    ):
        assert api.default_name(lamella.plan(model, context=64, **arguments)) == name


@pytest.mark.skipif(not RIVAL, reason="LAMELLA_RIVAL names no folder with llama-quantize")
@pytest.mark.parametrize("mix", ["Q4_K_M", "Q4_0", "Q2_K", "Q3_K_M", "IQ4_XS", "IQ3_XXS"])
@pytest.mark.parametrize("row_length", [256, 64])
def test_a_stock_variant_is_what_llama_quantize_makes(tmp_path: Path, mix: str, row_length: int) -> None:
    model = write_tiny_model(tmp_path / "m.gguf", n_layers=9, n_embd=row_length, n_ff=256)
    matrix = make_matrix(read_model(model).spec, layers_only=False)
    api.write_importance(matrix, tmp_path / "imatrix.gguf")
    command = [f"{RIVAL}/llama-quantize", "--imatrix", str(tmp_path / "imatrix.gguf"), str(model)]
    subprocess.run([*command, str(tmp_path / "rival.gguf"), mix, "2"], check=True, capture_output=True, timeout=60)
    plan = lamella.plan(model, "stock", mix=mix, importance=matrix, context=64)
    lamella.build(model, tmp_path / "store", plan, importance=matrix)
    store, name = lamella.Store.open(tmp_path / "store"), f"stock-{mix.lower()}-imatrix"
    rival, ours = read_model(tmp_path / "rival.gguf").tensors, read_model(store.first_link(name)).tensors
    assert {n: t.spec for n, t in rival.items()} == {n: t.spec for n, t in ours.items()}
    for tensor, stored in rival.items():
        np.testing.assert_array_equal(_bytes(stored), _bytes(ours[tensor]), tensor)


def _bytes(tensor: TensorData) -> object:
    return np.fromfile(tensor.path, np.uint8, tensor.n_bytes, offset=tensor.offset)


def test_a_matrix_of_another_model_chooses_no_types(model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", n_layers=2, n_embd=64, name="other")
    with pytest.raises(ArtifactError, match="another model"):
        lamella.plan(model, "stock", mix="Q4_0", importance=make_matrix(read_model(other).spec))
