"""Measured speeds survive between runs, and a bad cache never hurts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.core.precision import GgmlType
from lamella.llama import kernels
from lamella.llama.kernels import KernelTimes
from lamella.run.kernel_table import KernelTable


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the types measured, in order; measuring takes no time."""
    names: list[str] = []

    def measure(ggml_type: GgmlType, n_threads: int, least_seconds: float = 0.0) -> KernelTimes:
        names.append(ggml_type.name)
        return KernelTimes(float(n_threads), 1.0)

    def measure_attention(n_threads: int, least_seconds: float = 0.0) -> KernelTimes:
        names.append("attention")
        return KernelTimes(0.5, 0.25)

    monkeypatch.setattr(kernels, "measure", measure)
    monkeypatch.setattr(kernels, "measure_attention", measure_attention)
    return names


def test_each_type_is_measured_once_for_all_runs(tmp_path: Path, measured: list[str]) -> None:
    file = tmp_path / "cache" / "kernels.json"
    KernelTable(file, 2).times(["Q4_0", "Q8_0"])
    times = KernelTable(file, 2).times(["Q8_0", "Q4_0", "Q6_K"])
    assert measured == ["Q4_0", "Q8_0", "Q6_K"]
    assert set(times) == {"Q4_0", "Q8_0", "Q6_K"}


def test_other_thread_counts_are_measured_anew(tmp_path: Path, measured: list[str]) -> None:
    file = tmp_path / "kernels.json"
    KernelTable(file, 2).times(["Q4_0"])
    assert KernelTable(file, 1).times(["Q4_0"])["Q4_0"].mapped_token == 1.0
    assert KernelTable(file, 2).times(["Q4_0"])["Q4_0"].mapped_token == 2.0
    assert measured == ["Q4_0", "Q4_0"]  # the second thread count did not push the first out


def test_attention_is_measured_once_and_kept_beside_the_types(tmp_path: Path, measured: list[str]) -> None:
    file = tmp_path / "kernels.json"
    KernelTable(file, 2).times(["Q4_0"])
    assert [KernelTable(file, 2).attention().mapped_token for _ in range(2)] == [0.5, 0.5]
    assert set(KernelTable(file, 2).times(["Q4_0"])) == {"Q4_0"}
    assert measured == ["Q4_0", "attention"]


def test_what_was_measured_for_long_is_kept_apart(tmp_path: Path, measured: list[str]) -> None:
    file = tmp_path / "kernels.json"
    for seconds in (0.0, 0.04, 0.0, 0.04):
        KernelTable(file, 2, seconds).times(["Q4_0"])
    assert measured == ["Q4_0", "Q4_0"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"x": 1}', b"\x00\xff"])
def test_a_damaged_cache_is_replaced(tmp_path: Path, measured: list[str], content: bytes) -> None:
    file = tmp_path / "kernels.json"
    file.write_bytes(content)
    KernelTable(file, 2).times(["Q4_0"])
    KernelTable(file, 2).times(["Q4_0"])
    assert measured == ["Q4_0"]


def test_a_named_pipe_in_place_of_a_cache_is_not_waited_for(tmp_path: Path, measured: list[str]) -> None:
    os.mkfifo(tmp_path / "kernels.json")
    assert KernelTable(tmp_path / "kernels.json", 2).times(["Q4_0"])["Q4_0"].mapped_token == 2.0
    assert measured == ["Q4_0"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, measured: list[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    times = KernelTable(tmp_path / "file" / "kernels.json", 2).times(["Q4_0"])
    assert times["Q4_0"].mapped_token == 2.0
    assert measured == ["Q4_0"]


def test_a_file_that_cannot_be_put_in_its_place_is_not_left_beside_it(tmp_path: Path, measured: list[str]) -> None:
    file = tmp_path / "kernels.json"
    file.mkdir()
    assert set(KernelTable(file, 2).times(["Q4_0"])) == {"Q4_0"}
    assert list(tmp_path.iterdir()) == [file]
