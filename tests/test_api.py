"""The Python API tells the story: measure, plan, build, run, switch."""

from __future__ import annotations

from pathlib import Path

import pytest

import lamella
from lamella.core.errors import ArtifactError, DoesNotFit, InvalidRequest
from tests.fakes.tiny_model import write_tiny_model


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
        generation = engine.generate("a b c", max_tokens=6)
        next(generation)
        engine.switch("alpha-0.3")
        assert [t.variant for t in generation if t.id >= 0] == ["alpha-0.3"] * (generation.stats.n_generated - 1)


def test_every_public_name_is_there() -> None:
    for name in lamella.__all__:
        assert getattr(lamella, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        lamella.nothing  # noqa: B018


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
    from lamella import api

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
