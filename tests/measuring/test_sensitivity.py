"""Sensitivity on a real, tiny model: probes against files that really hold the rounded tensor."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import ArtifactError, InvalidRequest, StorageFailed
from lamella.core.precision import GGML_TYPES
from lamella.llama.context import Context, ContextOptions
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.logits import Reference, survey
from lamella.llama.model import Model
from lamella.measuring import MeasureSettings, measure_model, parse_calibration
from lamella.measuring.calibration import read_texts
from lamella.measuring.journal import journal_file
from lamella.measuring.probes import Loss, Probes
from lamella.measuring.samples import Sampling, TaskWindows, task_windows
from lamella.measuring.sensitivity import loss_at, measure_sensitivity, tensor_loss
from lamella.quantize.build import build_variant
from lamella.store.store import Store
from tests.fakes.matrices import make_matrix
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model

TEXT = "The quick brown fox jumps over the lazy dog, and 12 more (or 13?) follow; then nothing happens. " * 8
SETTINGS = MeasureSettings(samples=2, window_tokens=32)
TENSOR = "blk.1.ffn_down.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return read_model(write_tiny_model(tmp_path_factory.mktemp("sensitivity") / "tiny.gguf"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def windows_of(loaded: Model, text: Path) -> list[TaskWindows]:
    texts = read_texts([parse_calibration(str(text))])
    return task_windows(loaded, texts, Sampling(2, 32, seed=0), 1, lambda *_: None)


def logits_of(loaded: Model, tasks: list[TaskWindows]) -> np.ndarray:
    found = []
    with Context(loaded, ContextOptions(32, n_batch=32, n_outputs=24)) as context:
        for window in tasks[0].windows:
            context.forget()
            context.decode(window, 0, n_outputs=24)
            found.append(context.last_logits(24).copy())
    return np.concatenate(found)


def stray(model: ModelFile, text: Path, rounded: Mapping[str, str], folder: Path) -> float:
    """Mean divergence of a variant that was really built with these types, in a model loaded from its files."""
    plan = make_plan(model.spec, "fp16", outside="fp16")
    tensors = {t.name: rounded.get(t.name, t.type_name) for t in model.spec.tensors}
    store = Store.create(folder, model.spec.identity)
    build_variant(model, dataclasses.replace(plan, tensors=tensors), store, "rounded")
    with Model.load(model.paths) as untouched, Model.load(store.shard_paths(store.variant("rounded"))) as other:
        tasks = windows_of(untouched, text)
        reference, logits = logits_of(untouched, tasks), logits_of(other, tasks)
    held = Reference(reference.shape)
    held.hold(reference, survey(reference).normalizers)
    return float(held.divergences(logits, survey(logits).normalizers).mean())


def test_a_probe_loses_what_a_file_with_that_tensor_rounded_loses(model: ModelFile, text: Path, tmp_path: Path) -> None:
    found = measure_sensitivity(model, [parse_calibration(str(text))], SETTINGS)
    by_name = {t.tensor: t for t in found.tensors}
    for i, name in enumerate((TENSOR, "token_embd.weight", "blk.0.attn_q.weight")):
        expected = stray(model, text, {name: "Q4_0"}, tmp_path / str(i))
        assert expected > 0
        assert by_name[name].mean == pytest.approx(expected, rel=1e-5)


def test_the_check_is_what_a_file_with_all_tensors_rounded_loses(model: ModelFile, text: Path, tmp_path: Path) -> None:
    found = measure_sensitivity(model, [parse_calibration(str(text))], SETTINGS)
    whole = {t.name: "Q5_0" for t in model.spec.tensors if t.is_matrix}
    check = next(c for c in found.checks if c.type_name == "Q5_0")
    assert check.measured == pytest.approx(stray(model, text, whole, tmp_path), rel=1e-5)
    assert check.predicted == pytest.approx(sum(t.by_type["Q5_0"] for t in found.tensors))


def test_probes_leave_the_weights_as_they_were(model: ModelFile, text: Path) -> None:
    with Model.load(model.paths) as loaded, Probes(model, loaded, windows_of(loaded, text)) as probes:
        first = probes.losses({TENSOR: GGML_TYPES["Q4_0"]})
        assert probes.losses({}) == {"text": Loss(0.0, 0.0)}
        assert probes.losses({TENSOR: GGML_TYPES["Q4_0"]}) == first


def test_every_matrix_is_probed_and_every_type_its_rows_allow_is_priced(model: ModelFile, text: Path) -> None:
    found = measure_sensitivity(model, [parse_calibration(str(text))], SETTINGS)
    matrices = {t.name: t for t in model.spec.tensors if t.is_matrix}
    assert {t.tensor for t in found.tensors} == set(matrices)
    for loss in found.tensors:
        assert loss.by_type[matrices[loss.tensor].type_name] == 0
        assert loss.by_type["Q4_0"] == pytest.approx(max(loss.mean, loss.standard_error))
        assert 0 < loss.by_type["Q8_0"] < loss.by_type["Q5_0"] < loss.by_type["Q4_0"]
        assert ("Q4_K" in loss.by_type) == (matrices[loss.tensor].row_length % 256 == 0)
        assert "IQ2_XS" not in loss.by_type  # needs an importance matrix


def test_an_importance_matrix_is_used_and_offers_more_types(model: ModelFile, text: Path) -> None:
    matrix = make_matrix(model.spec)
    plain = measure_sensitivity(model, [parse_calibration(str(text))], SETTINGS)
    found = measure_sensitivity(model, [parse_calibration(str(text))], SETTINGS, importance=matrix)
    assert found.settings["importance"] == matrix.digest() != plain.settings["importance"] == ""
    means = [{t.tensor: t.mean for t in m.tensors} for m in (plain, found)]
    assert means[0][TENSOR] != means[1][TENSOR]
    assert means[0]["token_embd.weight"] == means[1]["token_embd.weight"]  # the matrix does not know it


def test_layers_are_probed_as_a_whole(model: ModelFile, text: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, level="layer")
    found = measure_model(model, ["sensitivity"], [parse_calibration(str(text))], settings)["sensitivity"]
    assert [s.layer for s in found.layers] == list(range(model.spec.n_layers))
    assert not found.tensors
    assert not found.checks
    rounded = {t.name: "Q4_0" for t in model.spec.layers[1].matrices}
    assert found.layers[1].mean == pytest.approx(stray(model, text, rounded, tmp_path), rel=1e-5)


def test_layers_of_a_tensor_measurement_are_sums_and_tasks_count_alike(model: ModelFile, text: Path) -> None:
    other = text.with_name("other.txt")
    other.write_text("".join(reversed(TEXT)))
    texts = [parse_calibration(f"a={text}"), parse_calibration(f"b={other}")]
    found = measure_sensitivity(model, texts, SETTINGS)
    in_layer = [t for t in found.tensors if t.tensor.startswith("blk.1.")]
    assert found.layers[1].mean == pytest.approx(sum(t.mean for t in in_layer))
    assert found.layers[1].mean == pytest.approx((found.per_task["a"][1].mean + found.per_task["b"][1].mean) / 2)
    assert found.per_task["a"][1].mean != found.per_task["b"][1].mean


def test_a_loss_below_its_noise_counts_as_the_noise() -> None:
    loss = tensor_loss("w", "Q4_0", Loss(-1e-6, 4e-6), {"Q4_0": 2.0, "Q8_0": 0.5, "F16": 0.0})
    assert loss.by_type == {"Q4_0": 4e-6, "Q8_0": 1e-6, "F16": 0.0}
    assert loss.mean == -1e-6


def test_a_finer_probe_is_met_exactly_and_the_types_between_follow_a_power_law() -> None:
    errors = {"Q4_0": 8.0, "Q5_0": 4.0, "Q5_1": 2.0, "Q8_0": 0.5, "Q2_K": 16.0}
    loss = tensor_loss("w", "Q4_0", Loss(0.64, 0.0), errors, finer=Loss(0.01, 0.0))
    assert loss.finer == {"Q5_1": 0.01}
    assert loss.by_type == pytest.approx({"Q4_0": 0.64, "Q5_0": 0.08, "Q5_1": 0.01, "Q8_0": 0.0025, "Q2_K": 1.28})
    noisy = tensor_loss("w", "Q4_0", Loss(0.01, 0.0), errors, finer=Loss(0.02, 0.0))
    assert noisy.by_type["Q5_0"] == noisy.by_type["Q5_1"] == pytest.approx(0.01)  # never more for a smaller error


def test_a_probe_that_changed_nothing_makes_only_those_types_free_that_change_nothing() -> None:
    errors = {"Q4_0": 0.0, "Q8_0": 0.0, "Q2_K": 3.0, "F16": 0.0}
    assert tensor_loss("w", "Q4_0", Loss(0.0, 0.0), errors).by_type == {"Q4_0": 0.0, "Q8_0": 0.0, "F16": 0.0}


def test_a_finer_probe_that_lost_nothing_makes_no_coarser_type_free() -> None:
    errors = {"Q4_0": 8.0, "Q5_0": 4.0, "Q5_1": 2.0, "Q8_0": 0.5, "Q2_K": 16.0}
    loss = tensor_loss("w", "Q4_0", Loss(0.64, 0.0), errors, finer=Loss(0.0, 0.0))
    assert loss.by_type == pytest.approx({"Q4_0": 0.64, "Q5_0": 0.32, "Q5_1": 0.0, "Q8_0": 0.0, "Q2_K": 1.28})


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_tensors_that_were_at_the_probes_type_before_are_probed_at_another(
    dtype: str, text: Path, tmp_path: Path
) -> None:
    """Such as embeddings of models that somebody made 16 bits of again: rounding them a second time changes nothing."""
    model = read_model(write_tiny_model(tmp_path / "tiny.gguf", n_layers=2, dtype=dtype, grid="Q4_0"))
    found = measure_sensitivity(model, [parse_calibration(str(text))], SETTINGS)
    assert {t.probe for t in found.tensors} == {"IQ4_NL"}
    embedding = next(t for t in found.tensors if t.tensor == "token_embd.weight")
    assert embedding.by_type["IQ4_NL"] > 0
    assert embedding.by_type["Q4_0"] < embedding.by_type["IQ4_NL"] / 1000
    assert all(t.by_type["IQ4_NL"] > 0 for t in found.tensors)


@given(st.floats(1e-9, 1e3), st.floats(1.0001, 1e3), st.floats(1e-9, 1.0), st.floats(1.0, 1e3), st.data())
def test_predicted_losses_never_fall_with_the_error(
    low: float, wider: float, low_loss: float, more: float, data: st.DataObject
) -> None:
    points = {low: low_loss, low * wider: low_loss * more}
    errors = sorted(data.draw(st.lists(st.floats(0, low * wider * 4), min_size=2)))
    losses = [loss_at(error, points) for error in errors]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(losses))


def test_the_tensors_that_lose_most_are_probed_twice(model: ModelFile, text: Path, tmp_path: Path) -> None:
    found = measure_sensitivity(model, [parse_calibration(str(text))], SETTINGS)
    ranked = sorted(found.tensors, key=lambda t: -t.mean)
    twice = [t for t in found.tensors if t.finer]
    assert {t.tensor for t in twice} == {t.tensor for t in ranked[: len(twice)]}
    assert len(twice) == math.ceil(0.1 * len(ranked))
    expected = stray(model, text, {ranked[0].tensor: "Q5_1"}, tmp_path)
    assert ranked[0].finer["Q5_1"] == pytest.approx(expected, rel=1e-5)
    assert ranked[0].by_type["Q5_1"] == pytest.approx(expected, rel=1e-5)


class Interrupted(Exception):
    pass


def test_an_interrupted_measurement_goes_on_and_finds_the_same(model: ModelFile, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.json.probes"
    calibration = [parse_calibration(str(text))]
    expected = measure_sensitivity(model, calibration, SETTINGS)

    def stop(done: int, _total: int, what: str) -> None:
        if what == "probing" and done == 5:
            raise Interrupted

    with pytest.raises(Interrupted), journal_file(path) as open_journal:
        measure_sensitivity(model, calibration, SETTINGS, open_journal=open_journal, on_progress=stop)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 1 + 5
    doubled = json.loads(lines[1])
    doubled["losses"]["text"]["mean"] *= 2
    path.write_bytes(b"\n".join([lines[0], json.dumps(doubled).encode(), *lines[2:]]) + b'\n{"probe": "blk')
    with journal_file(path) as open_journal:
        found = measure_sensitivity(model, calibration, SETTINGS, open_journal=open_journal)
    assert not path.exists()
    assert found.tensors[0].mean == 2 * expected.tensors[0].mean  # it was read, not measured again
    assert found.tensors[1:] == expected.tensors[1:]


def test_a_journal_of_another_measurement_is_not_used(model: ModelFile, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "probes"
    calibration = [parse_calibration(str(text))]
    path.write_text(json.dumps({"level": "tensor"}) + "\n" + '{"probe":"x","losses":{}}\n')
    with pytest.raises(Interrupted), journal_file(path) as open_journal:
        measure_sensitivity(model, calibration, SETTINGS, open_journal=open_journal, on_progress=_stop_at_first_probe)
    assert b'"probe":"x"' not in path.read_bytes()
    other = dataclasses.replace(SETTINGS, seed=1)
    before = path.read_bytes().splitlines()[0]
    with pytest.raises(Interrupted), journal_file(path) as open_journal:
        measure_sensitivity(model, calibration, other, open_journal=open_journal, on_progress=_stop_at_first_probe)
    assert path.read_bytes().splitlines()[0] != before


def test_a_journal_of_texts_of_other_names_is_not_used(model: ModelFile, text: Path, tmp_path: Path) -> None:
    """Losses are kept by the name of the task."""
    path = tmp_path / "probes"
    done = iter(range(100))

    def stop_later(_done: int, _total: int, what: str) -> None:
        if what == "probing" and next(done) == 3:
            raise Interrupted

    one, other = parse_calibration(f"a={text}"), parse_calibration(f"b={text}")
    with pytest.raises(Interrupted), journal_file(path) as open_journal:
        measure_sensitivity(model, [one], SETTINGS, open_journal=open_journal, on_progress=stop_later)
    with journal_file(path) as open_journal:
        found = measure_sensitivity(model, [other], SETTINGS, open_journal=open_journal)
    assert set(found.per_task) <= {"b"}
    assert found.tensors


def _stop_at_first_probe(_done: int, _total: int, what: str) -> None:
    if what == "probing":
        raise Interrupted


def test_a_journal_that_cannot_be_written_is_said_so(model: ModelFile, text: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(StorageFailed, match="cannot keep finished probes"),
        journal_file(tmp_path / "no" / "probes") as open_journal,
    ):
        measure_sensitivity(model, [parse_calibration(str(text))], SETTINGS, open_journal=open_journal)


def test_bad_questions_are_refused(model: ModelFile, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="unknown ggml type 'Q9_9'"):
        MeasureSettings(probe="Q9_9")
    with pytest.raises(InvalidRequest, match="cannot be told from probes at TQ2_0"):
        measure_sensitivity(model, [parse_calibration(str(text))], dataclasses.replace(SETTINGS, probe="TQ2_0"))
    with pytest.raises(InvalidRequest, match="at least 8 tokens, not 4"):
        measure_sensitivity(model, [parse_calibration(str(text))], MeasureSettings(window_tokens=4))
    with pytest.raises(InvalidRequest, match="is too short"):
        measure_sensitivity(model, [parse_calibration(str(text))], MeasureSettings(samples=2000, window_tokens=64))
    other = read_model(write_tiny_model(tmp_path / "other.gguf", n_layers=2))
    with pytest.raises(ArtifactError, match="another model"):
        measure_sensitivity(model, [parse_calibration(str(text))], SETTINGS, importance=make_matrix(other.spec))
