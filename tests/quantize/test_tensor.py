"""Tensors pass in chunks: in order, the same as in one piece, and what is wrong is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lamella.core.errors import InvalidWeights, StorageFailed, TruncatedModel, UnsupportedTensor
from lamella.core.model import TensorSpec
from lamella.core.precision import GGML_TYPES
from lamella.llama.gguf import TensorData
from lamella.llama.quantize import encode_rows
from lamella.quantize import channel, tensor
from lamella.quantize.tensor import Conversion, SourceFiles, chunk_weights, chunks_of, convert_chunk, in_order

NAME = "blk.0.ffn_up.weight"


def stored(path: Path, values: NDArray[np.float32], type_name: str = "F32", offset: int = 96) -> TensorData:
    """A tensor's bytes in a file, after ``offset`` others."""
    data = encode_rows(values, GGML_TYPES[type_name])
    path.write_bytes(bytes(offset) + data.tobytes())
    return TensorData(TensorSpec(NAME, values.shape[::-1], type_name), path, offset, data.nbytes)


def converted(conversion: Conversion, n_threads: int = 2) -> bytes:
    """A tensor's stored bytes, made of the parts that a build is made of."""
    conversion.check_possible()
    tensor.prepare([conversion])
    with SourceFiles() as files, ThreadPoolExecutor(n_threads) as pool:
        chunks = chunks_of(conversion, n_threads)
        return b"".join(in_order(pool, lambda chunk: convert_chunk(chunk, files), chunks, in_flight=2 * n_threads))


@pytest.fixture
def values() -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((700, 256)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor, "BLOCK_CHUNK_WEIGHTS", 256 * 9)
    monkeypatch.setattr(tensor, "CHANNEL_CHUNK_WEIGHTS", 256 * 7)


@pytest.mark.parametrize("target", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K", "IQ4_NL", "Q2_K"])
def test_chunks_give_the_same_bytes_as_one_piece(tmp_path: Path, values: NDArray[np.float32], target: str) -> None:
    conversion = Conversion(stored(tmp_path / "t", values), GGML_TYPES[target], None)
    assert converted(conversion) == encode_rows(values, GGML_TYPES[target]).tobytes()


def test_channel_chunks_give_the_same_bytes_as_one_piece(tmp_path: Path, values: NDArray[np.float32]) -> None:
    conversion = Conversion(stored(tmp_path / "t", values), GGML_TYPES["Q3_K"], "int3")
    assert converted(conversion) == channel.encode_rows(values, "int3", GGML_TYPES["Q3_K"]).tobytes()


@pytest.mark.parametrize("source", ["F16", "BF16", "Q8_0", "Q4_1", "Q6_K", "IQ4_XS"])
def test_every_source_can_be_read(tmp_path: Path, values: NDArray[np.float32], source: str) -> None:
    conversion = Conversion(stored(tmp_path / "t", values, source), GGML_TYPES["F32"], None)
    read = np.frombuffer(converted(conversion), np.float32).reshape(values.shape)
    assert np.sqrt(np.mean((read - values) ** 2)) < 0.15


def test_the_same_type_is_copied(tmp_path: Path, values: NDArray[np.float32]) -> None:
    source = stored(tmp_path / "t", values, "Q4_0")
    conversion = Conversion(source, GGML_TYPES["Q4_0"], None)
    assert conversion.copies
    assert converted(conversion) == source.path.read_bytes()[source.offset :]


def test_a_type_that_cannot_be_written_can_be_copied(tmp_path: Path) -> None:
    spec = TensorSpec(NAME, (256, 4), "IQ1_S")
    (tmp_path / "t").write_bytes(bytes(spec.n_bytes))
    conversion = Conversion(TensorData(spec, tmp_path / "t", 0, spec.n_bytes), GGML_TYPES["IQ1_S"], None)
    assert converted(conversion) == bytes(spec.n_bytes)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("source", "target", "rounding"),
    [("F32", "Q4_K", None), ("F32", "F32", None), ("F16", "Q8_0", None), ("BF16", "Q4_0", "int4")],
)
def test_not_finite_weights_are_refused_by_name(
    tmp_path: Path, values: NDArray[np.float32], source: str, target: str, rounding: str | None, bad: float
) -> None:
    values[650, 3] = bad
    conversion = Conversion(stored(tmp_path / "t", values, source), GGML_TYPES[target], rounding)
    with pytest.raises(InvalidWeights, match=NAME.replace(".", r"\.")):
        converted(conversion)


@pytest.mark.parametrize(("target", "rounding"), [("F16", None), ("Q8_0", None), ("Q8_0", "int8")])
def test_weights_that_the_target_cannot_hold_are_refused_by_name(
    tmp_path: Path, values: NDArray[np.float32], target: str, rounding: str | None
) -> None:
    values[1, 1] = 1e9
    with pytest.raises(InvalidWeights, match=NAME):
        converted(Conversion(stored(tmp_path / "t", values), GGML_TYPES[target], rounding))


@pytest.mark.parametrize(("target", "fact"), [("Q4_K", "multiples of 256"), ("IQ2_XXS", "importance matrix")])
def test_impossible_targets_are_refused_by_name(tmp_path: Path, target: str, fact: str) -> None:
    row_length = 96 if target == "Q4_K" else 256
    source = stored(tmp_path / "t", np.ones((2, row_length), np.float32))
    with pytest.raises(UnsupportedTensor, match=f"{NAME}.*{fact}"):
        converted(Conversion(source, GGML_TYPES[target], None))


def test_a_source_that_became_shorter_is_refused(tmp_path: Path, values: NDArray[np.float32]) -> None:
    source = stored(tmp_path / "t", values)
    source.path.write_bytes(source.path.read_bytes()[:-1])
    with pytest.raises(TruncatedModel, match=NAME):
        converted(Conversion(source, GGML_TYPES["Q8_0"], None))
    source.path.unlink()
    with pytest.raises(StorageFailed, match="No such file"):
        converted(Conversion(source, GGML_TYPES["Q8_0"], None))


@pytest.mark.parametrize("n_threads", [1, 2, 16, 128])
@pytest.mark.parametrize("rounding", [None, "int4"])
def test_memory_is_bounded_whatever_the_tensor(n_threads: int, rounding: str | None) -> None:
    """The embedding of a 1.5B model is 933 MB in float32; all threads' chunks together stay under 100 MB."""
    spec = TensorSpec("token_embd.weight", (1536, 151936), "F16")
    conversion = Conversion(TensorData(spec, Path("/"), 0, 0), GGML_TYPES["Q4_0"], rounding)
    chunks = list(chunks_of(conversion, n_threads))
    assert sum(chunk.n_rows for chunk in chunks) == 151936
    assert [c.first_row for c in chunks] == list(np.cumsum([0, *(c.n_rows for c in chunks)])[:-1])
    assert max(chunk.n_weights for chunk in chunks) <= max(1536, chunk_weights(conversion, n_threads))
    assert n_threads * max(chunk.n_weights for chunk in chunks) * 4 < 100e6


def test_results_come_in_order_and_few_are_in_flight() -> None:
    begun = 0

    def items() -> Iterator[int]:
        nonlocal begun
        for item in range(1, 51):
            begun = item
            yield item

    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item

    with ThreadPoolExecutor(4) as pool:
        for n, result in enumerate(in_order(pool, work, items(), in_flight=5), start=1):
            assert result == n
            assert begun - n <= 5


def test_closing_early_cancels_what_has_not_begun() -> None:
    gate, done = threading.Event(), []

    def work(item: int) -> int:
        if item:
            gate.wait()
        done.append(item)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, work, range(100), in_flight=10)
        assert next(results) == 0
        results.close()
        gate.set()
    assert len(done) <= 2  # the first, and one that had begun
