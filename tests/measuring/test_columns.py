"""Gathering importance: sums of squares of what each weight is multiplied by, as llama-imatrix takes them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lamella.core.errors import InvalidRequest
from lamella.llama.context import Context, ContextOptions
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.imatrix import read_imatrix, serialise_imatrix
from lamella.llama.model import Model
from lamella.measuring import ImportanceSettings, gather_importance, parse_calibration
from lamella.measuring.calibration import CalibrationFile
from lamella.measuring.columns import add_experts
from tests.fakes.tiny_model import write_tiny_model

TEXT = "The quick brown fox jumps over the lazy dog, and 12 more (or 13?) follow; then nothing happens. " * 8
RIVAL = os.environ.get("LAMELLA_RIVAL")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return read_model(write_tiny_model(tmp_path_factory.mktemp("columns") / "tiny.gguf"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def normed_inputs(model_file: ModelFile, window: list[int]) -> dict[str, NDArray[np.float32]]:
    """What llama.cpp computes at the nodes that the products read, by another observer."""
    wanted = {"attn_norm-1": "attn_q", "ffn_norm-1": "ffn_up", "ffn_swiglu-1": "ffn_down", "result_norm": "output"}
    seen: dict[str, NDArray[np.float32]] = {}

    def observe(name: str, values: NDArray[np.float32]) -> None:
        seen[wanted[name]] = values

    options = ContextOptions(len(window), n_batch=len(window), n_outputs=len(window))
    with (
        Model.load(model_file.paths) as model,
        Context(model, options, wants=wanted.__contains__, observe=observe) as context,
    ):
        context.decode(window, 0, n_outputs=len(window))
    return seen


def test_sums_are_those_of_the_activations_that_another_observer_sees(model: ModelFile, text: Path) -> None:
    n = 96
    settings = ImportanceSettings(window_tokens=n, windows=2, head=True)
    found = gather_importance(model, [parse_calibration(str(text))], settings)
    with Model.load(model.paths) as loaded:
        tokens = loaded.vocabulary.tokenize(TEXT, parse_special=False)
        bos = loaded.vocabulary.bos
    windows = [tokens[:n], [bos, *tokens[n + 1 : 2 * n]]]
    assert windows[0][0] == bos
    seen = [normed_inputs(model, window) for window in windows]
    assert set(seen[0]) == {"attn_q", "ffn_up", "ffn_down", "output"}
    for part in seen[0]:
        name = "output.weight" if part == "output" else f"blk.1.{part}.weight"
        expected = sum(np.square(s[part], dtype=np.float64).sum(axis=0) for s in seen)
        np.testing.assert_allclose(found.sums[name].squares[0], expected, rtol=1e-4)
        assert found.sums[name].counts.tolist() == [2 * n]
    assert (found.chunk_count, found.chunk_tokens, found.datasets) == (2, n, (str(text),))
    assert found.structure == model.spec.identity.structure


def test_every_matrix_that_multiplies_is_there_and_the_head_may_be_left_out(
    model: ModelFile, text: Path, tmp_path: Path
) -> None:
    tied = read_model(write_tiny_model(tmp_path / "tied.gguf", tied=True))
    for source, head_name in ((model, "output.weight"), (tied, "token_embd.weight")):
        layers = {t.name for layer in source.spec.layers for t in layer.matrices}
        for head in (False, True):
            settings = ImportanceSettings(window_tokens=32, windows=1, head=head)
            found = gather_importance(source, [parse_calibration(str(text))], settings)
            assert set(found.sums) == layers | ({head_name} if head else set())
            assert {tuple(s.counts) for s in found.sums.values()} == {(32,)}
            found.check_model(source.spec.identity, source.spec.tensors)


def test_windows_longer_than_a_pass_count_every_token(model: ModelFile, text: Path) -> None:
    found = gather_importance(model, [parse_calibration(str(text))], ImportanceSettings(window_tokens=200, windows=1))
    assert {tuple(s.counts) for s in found.sums.values()} == {(200,)}


def test_a_text_whose_path_is_no_utf8_is_named_as_well_as_can_be(model: ModelFile, text: Path, tmp_path: Path) -> None:
    odd, out = tmp_path / "t\udcff.txt", tmp_path / "out.gguf"
    odd.write_bytes(text.read_bytes())
    found = gather_importance(model, [CalibrationFile("text", odd)], ImportanceSettings(window_tokens=32, windows=1))
    out.write_bytes(serialise_imatrix(found))
    assert read_imatrix(out).datasets == found.datasets == (f"{tmp_path}/t\ufffd.txt",)


def test_without_a_number_the_whole_text_is_read(model: ModelFile, text: Path) -> None:
    with Model.load(model.paths) as loaded:
        n_tokens = len(loaded.vocabulary.tokenize(TEXT, parse_special=False))
    found = gather_importance(model, [parse_calibration(str(text))], ImportanceSettings(window_tokens=64))
    assert found.chunk_count == n_tokens // 64


@pytest.mark.parametrize("slots", [1, 2])
def test_experts_get_the_squares_of_the_tokens_they_were_chosen_for(slots: int) -> None:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((20, slots, 6)).astype(np.float32)
    experts = np.stack([random.permutation(4)[:2] for _ in range(20)]).astype(np.int32)
    squares, counts = np.zeros((5, 6)), np.zeros(5, np.int64)
    add_experts(squares, counts, inputs, experts)
    expected, chosen = np.zeros((5, 6)), [0] * 5
    for token in range(20):
        for i in range(2):
            expected[experts[token, i]] += inputs[token, i % slots].astype(np.float64) ** 2
            chosen[experts[token, i]] += 1
    np.testing.assert_allclose(squares, expected, rtol=1e-5)
    assert counts.tolist() == chosen
    assert chosen[4] == 0


def test_requests_without_a_meaning_are_refused(model: ModelFile, text: Path) -> None:
    calibration = [parse_calibration(str(text))]
    with pytest.raises(InvalidRequest, match="name a calibration file"):
        gather_importance(model, [])
    with pytest.raises(InvalidRequest, match=r"too short: 90 windows of 64 tokens need 5760 tokens, it has \d+"):
        gather_importance(model, calibration, ImportanceSettings(window_tokens=64, windows=90))
    with pytest.raises(InvalidRequest, match="512 tokens are longer than the 256"):
        gather_importance(model, calibration)
    with pytest.raises(InvalidRequest, match="at least 1 window"):
        ImportanceSettings(windows=0)


@pytest.mark.skipif(not RIVAL, reason="LAMELLA_RIVAL names no folder with llama-imatrix")
def test_values_equal_those_of_llama_imatrix(model: ModelFile, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "rival.gguf"
    command = [f"{RIVAL}/llama-imatrix", "-m", str(model.paths[0]), "-f", str(text), "-o", str(out)]
    subprocess.run([*command, "-c", "128", "-b", "128", "--no-ppl"], check=True, capture_output=True, timeout=120)
    rival = read_imatrix(out)
    ours = gather_importance(model, [parse_calibration(str(text))], ImportanceSettings(window_tokens=128, head=False))
    assert set(ours.sums) == set(rival.sums)
    assert (ours.chunk_count, ours.chunk_tokens) == (rival.chunk_count, rival.chunk_tokens)
    for name, sums in rival.sums.items():
        np.testing.assert_array_equal(ours.sums[name].counts, sums.counts)
        np.testing.assert_allclose(ours.sums[name].squares, sums.squares, rtol=1e-3)
