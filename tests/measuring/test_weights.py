"""Metrics of the weights alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from lamella.core.errors import InvalidWeights, LamellaError, StorageFailed, TruncatedModel
from lamella.core.precision import GGML_TYPES, SCHEMES, Scheme, container
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.quantize import decode_rows, encode_rows
from lamella.measuring import rows
from lamella.measuring.weights import PRECISIONS, outlier_shares, weight_differences
from lamella.quantize import channel

RANDOM = np.random.default_rng(0)


def write_layers(path: Path, *layers: dict[str, NDArray[np.float32]]) -> ModelFile:
    """A GGUF with the given matrices in each layer; enough to read weights from, not to run."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(len(layers))
    for i, matrices in enumerate(layers):
        for name, values in matrices.items():
            writer.add_tensor(f"blk.{i}.{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_model(path)


def normal(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape, np.float32)


def test_a_normal_matrix_has_its_upper_tail_above_one(tmp_path: Path) -> None:
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": normal(1024, 512)})
    assert outlier_shares(model_file)[0] == pytest.approx(0.1587, abs=0.003)  # one-sided: two-sided is 0.317


def test_outlier_share_of_crafted_layers(tmp_path: Path) -> None:
    spikes = np.zeros((4, 32), np.float32)
    spikes[0, :3] = 5  # three far above the mean, and as many far below, which do not count
    spikes[3, :3] = -5
    alike = np.full((4, 32), 2.5, np.float32)
    shifted = spikes + np.float32(100)
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": spikes}, {"attn_q": alike}, {"attn_q": shifted})
    assert outlier_shares(model_file) == (3 / 128, 0.0, 3 / 128)


def test_mean_and_deviation_are_of_the_layer_not_of_each_matrix(tmp_path: Path) -> None:
    narrow, wide = normal(64, 32), normal(64, 32) * np.float32(100)
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": narrow, "ffn_up": wide})
    both = np.concatenate([narrow.ravel(), wide.ravel()]).astype(np.float64)
    assert outlier_shares(model_file) == (float(np.mean(both > both.mean() + both.std())),)


def test_norms_and_embeddings_are_not_looked_at(tmp_path: Path) -> None:
    weights = normal(64, 32)
    plain = write_layers(tmp_path / "a.gguf", {"attn_q": weights})
    with_norm = write_layers(tmp_path / "b.gguf", {"attn_q": weights, "attn_norm": np.full(32, 1e6, np.float32)})
    assert outlier_shares(plain) == outlier_shares(with_norm)


@pytest.mark.parametrize("metric", [outlier_shares, lambda m: weight_differences(m, "block")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, metric: Callable[[ModelFile], object]) -> None:
    broken = normal(64, 32)
    broken[3, 4] = np.inf
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": normal(8, 32)}, {"attn_k": broken})
    with pytest.raises(InvalidWeights, match=r"blk\.1\.attn_k\.weight"):
        metric(model_file)


def test_weight_difference_is_the_relative_norm_of_what_is_lost(tmp_path: Path) -> None:
    q, up = normal(16, 256), normal(8, 512) * np.float32(3)
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": q, "ffn_up": up})
    found = weight_differences(model_file, "block")
    q4 = GGML_TYPES["Q4_K"]
    lost = [m - decode_rows(encode_rows(m, q4), q4, m.shape[1]) for m in (q, up)]
    expected = np.sqrt(sum((x**2).sum() for x in lost) / ((q**2).sum() + (up**2).sum()))
    assert found["int4"] == pytest.approx((expected,), rel=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_fewer_bits_lose_more(tmp_path: Path, scheme: Scheme) -> None:
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": normal(64, 512)}, {"attn_q": normal(64, 512)})
    found = weight_differences(model_file, scheme)
    assert tuple(found) == PRECISIONS
    for layer in range(2):
        values = [found[name][layer] for name in PRECISIONS]  # int8 first
        assert values == sorted(values)
        assert 0 < values[0] < values[-1] < 1
        assert len(set(values)) == len(values)


def test_a_tensor_that_already_has_the_type_loses_nothing(tmp_path: Path) -> None:
    q3 = GGML_TYPES["Q3_K"]
    stored = encode_rows(normal(16, 256), q3)
    again = encode_rows(decode_rows(stored, q3, 256), q3)
    assert not np.array_equal(again, stored)  # rounding twice would lose something
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    kind = gguf.GGMLQuantizationType.Q3_K
    writer.add_tensor("blk.0.attn_q.weight", stored.reshape(16, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = weight_differences(read_model(tmp_path / "m.gguf"), "block")
    assert found["int3"] == (0.0,)
    assert found["int8"][0] > 0


def test_a_layer_of_zeros_loses_nothing(tmp_path: Path) -> None:
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": np.zeros((16, 64), np.float32)})
    assert set(weight_differences(model_file, "block").values()) == {(0.0,)}


def test_precisions_without_a_container_are_left_out_or_refused(tmp_path: Path) -> None:
    odd = write_layers(tmp_path / "m.gguf", {"attn_q": normal(16, 40)})  # no type has blocks of 40
    with pytest.raises(LamellaError, match="no container for rows"):
        weight_differences(odd, "channel")


def test_pieces_and_threads_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": normal(100, 256), "ffn_up": normal(33, 512)})
    whole = weight_differences(model_file, "block", n_threads=1), outlier_shares(model_file, n_threads=1)
    monkeypatch.setattr(rows, "PIECE_WEIGHTS", 256 * 7)
    counted: list[int] = []
    pieces = weight_differences(model_file, "block", n_threads=3), outlier_shares(model_file, on_weights=counted.append)
    assert pieces[1] == whole[1]
    for name in PRECISIONS:
        assert pieces[0][name] == pytest.approx(whole[0][name], rel=1e-9)
    assert counted[-1] == 2 * (100 * 256 + 33 * 512)


def test_a_stop_leaves_no_thread_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": normal(512, 256)})
    monkeypatch.setattr(rows, "PIECE_WEIGHTS", 256)
    read: list[int] = []
    original = rows.Piece.read

    def counted_read(piece: rows.Piece) -> NDArray[np.float32]:
        read.append(piece.first_row)
        return original(piece)

    monkeypatch.setattr(rows.Piece, "read", counted_read)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weight_differences(model_file, "block", n_threads=2, on_weights=stop)
    assert len(read) < 512


@pytest.mark.parametrize("scheme", ["channel", "truncate"])
@pytest.mark.parametrize("name", PRECISIONS)
def test_what_one_scale_a_row_loses_is_what_a_build_would_lose(tmp_path: Path, name: str, scheme: Scheme) -> None:
    weights = normal(14, 256) * np.float32(10.0) ** np.arange(-9, 5, dtype=np.float32)[:, None]
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": weights})
    built = container(name, 256, scheme)
    back = decode_rows(channel.encode_rows(weights, name, built, truncated=scheme == "truncate"), built, 256)
    expected = np.linalg.norm(weights - back) / np.linalg.norm(weights)
    # the largest rows outweigh all others, so each row is looked at alone too
    assert weight_differences(model_file, scheme)[name] == pytest.approx((expected,), rel=1e-5)
    for i, row in enumerate(weights):
        alone = write_layers(tmp_path / f"{i}.gguf", {"attn_q": row[None].repeat(2, axis=0)})
        expected = np.linalg.norm(row - back[i]) / np.linalg.norm(row)
        assert weight_differences(alone, scheme)[name] == pytest.approx((expected,), rel=1e-5)


def test_a_scale_that_fp16_cannot_hold_is_refused_as_a_build_would(tmp_path: Path) -> None:
    weights = normal(64, 256)
    weights[3, 4] = 1e8
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": weights})
    with pytest.raises(InvalidWeights, match=r"blk\.0\.attn_q\.weight.*fp16 cannot hold"):
        weight_differences(model_file, "channel")


@pytest.mark.parametrize("metric", [outlier_shares, lambda m: weight_differences(m, "block")])
def test_a_file_that_is_gone_or_shorter_is_refused_by_name(
    tmp_path: Path, metric: Callable[[ModelFile], object]
) -> None:
    model_file = write_layers(tmp_path / "m.gguf", {"attn_q": normal(64, 32)})
    path = model_file.paths[0]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(TruncatedModel, match=r"m\.gguf became shorter.*blk\.0\.attn_q"):
        metric(model_file)
    path.unlink()
    with pytest.raises(StorageFailed, match=r"m\.gguf: No such file"):
        metric(model_file)
