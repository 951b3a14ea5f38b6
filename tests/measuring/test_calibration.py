"""Calibration files: what is accepted, what is refused and why, and where windows lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest
from lamella.llama.model import Model
from lamella.measuring.calibration import CalibrationFile, cut_windows, parse_calibration, read_texts, spread_starts
from lamella.measuring.columns import ImportanceSettings, consecutive_windows
from tests.fakes.tiny_model import write_tiny_model


@pytest.mark.parametrize(
    ("argument", "task", "path"),
    [
        ("code=a/b.txt", "code", "a/b.txt"),
        ("a/b.txt", "text", "a/b.txt"),
        ("./a=b.txt", "text", "./a=b.txt"),
        ("data/x=1/text.txt", "text", "data/x=1/text.txt"),
        ("code=/tmp/x=1.txt", "code", "/tmp/x=1.txt"),
        ("math.easy-2=f", "math.easy-2", "f"),
    ],
)
def test_task_is_what_looks_like_a_name_before_the_first_equals_sign(argument: str, task: str, path: str) -> None:
    assert parse_calibration(argument) == CalibrationFile(task, Path(path))


@pytest.mark.parametrize("argument", ["", "  ", "code=", "self=a.txt"])
def test_argument_without_file_or_with_the_reserved_task_is_refused(argument: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_calibration(argument)


def test_text_is_identified_by_the_hash_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Grüße\r\n".encode())
    (text,) = read_texts([CalibrationFile("greeting", path)])
    assert (text.task, text.text) == ("greeting", "Grüße\r\n")
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere\.txt: No such file"):
        read_texts([CalibrationFile("text", tmp_path / "nowhere.txt")])


def test_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" \n\t\n")
    with pytest.raises(InvalidRequest, match="is empty"):
        read_texts([CalibrationFile("text", path)])


def test_other_encodings_are_refused_with_byte_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc \xff def")
    with pytest.raises(InvalidRequest, match="not UTF-8: byte 0xff at offset 4"):
        read_texts([CalibrationFile("text", path)])


def test_two_files_of_one_task_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(InvalidRequest, match="2 calibration files have the task 'text'"):
        read_texts([CalibrationFile("text", path), CalibrationFile("text", path)])


@pytest.mark.parametrize("add_bos", [True, False])
def test_windows_start_with_bos_where_the_model_wants_it_and_never_with_eos(tmp_path: Path, add_bos: bool) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", n_layers=1, add_bos=add_bos, add_eos=True)
    path = tmp_path / "a.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 4)
    (text,) = read_texts([CalibrationFile("text", path)])
    with Model.load([model]) as loaded:
        vocabulary = loaded.vocabulary
        spread = cut_windows(text, vocabulary, 3, 16, seed=0)
        consecutive = consecutive_windows(text, vocabulary, ImportanceSettings(16, windows=3))
    for windows in (spread, consecutive):
        assert [len(w) for w in windows] == [16] * 3
        assert [(w[0] == vocabulary.bos, vocabulary.eos in w) for w in windows] == [(add_bos, False)] * 3


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5000), st.integers())
def test_windows_lie_one_in_each_part_and_never_overlap(n: int, window: int, spare: int, seed: int) -> None:
    n_tokens = n * window + spare
    starts = spread_starts(n_tokens, n, window, seed)
    assert len(starts) == n
    for i, start in enumerate(starts):
        assert i * n_tokens // n <= start <= start + window <= (i + 1) * n_tokens // n
    assert starts == spread_starts(n_tokens, n, window, seed)


def test_another_seed_gives_other_windows() -> None:
    assert spread_starts(10_000, 8, 100, 0) != spread_starts(10_000, 8, 100, 1)
