"""What shards were made from, and whether it is still as it was."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from lamella.core.errors import StorageFailed, StoreFormatError
from lamella.store.layout import Layout
from lamella.store.sources import SourceFile, SourceNote, Sources
from tests.store.conftest import IDENTITY

TENSORS = (("a.weight", "F16"), ("b.weight", "F32"))


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    (tmp_path / "store").mkdir()
    return Sources(Layout(tmp_path / "store"))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "1.gguf", tmp_path / "2.gguf"
    for path in paths:
        path.write_bytes(b"weights")
        os.utime(path, ns=(0, 5_000_000_007))
    return paths


def _note(*files: Path) -> SourceNote:
    return SourceNote(IDENTITY, tuple(map(SourceFile.of, files)), TENSORS)


def test_a_note_comes_back_as_it_was_and_the_last_one_counts(sources: Sources, files: tuple[Path, Path]) -> None:
    assert sources.find(IDENTITY.weights) is None
    sources.note(_note(files[0]))
    sources.note(_note(*files))
    assert sources.find(IDENTITY.weights) == _note(*files)
    assert sources.unreadable() == ()


def test_a_file_is_looked_at_and_named_in_full(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files[0].parent)
    assert SourceFile.of(Path("1.gguf")) == SourceFile(str(files[0]), len(b"weights"), 5_000_000_007)
    with pytest.raises(StorageFailed):
        SourceFile.of(Path("3.gguf"))


def test_the_first_change_of_any_file_is_said(files: tuple[Path, Path]) -> None:
    note = _note(*files)
    assert note.change() == ""
    os.utime(files[1], ns=(0, 5_000_000_008))  # by a nanosecond
    assert note.change() == f"{files[1]} was written to since it was noted"
    files[1].write_bytes(b"other weights")
    assert note.change() == f"{files[1]} has 13 bytes; it had 7 when it was noted"
    files[0].unlink()
    assert note.change() == f"{files[0]}: No such file or directory"


@pytest.mark.parametrize("changed", [{"files": ()}, {"model": dataclasses.replace(IDENTITY, weights="0" * 64)}])
def test_a_note_that_helps_nobody_is_named_with_the_cure(
    sources: Sources, files: tuple[Path, Path], tmp_path: Path, changed: dict[str, object]
) -> None:
    sources.note(dataclasses.replace(_note(*files), **changed))  # type: ignore[arg-type]
    layout = Layout(tmp_path / "store")
    (written,) = (path for _, path in layout.source_files())
    written.rename(layout.source(IDENTITY.weights))
    says = r"names no file; to mend it, run: lamella store repair .* --model FILE"
    with pytest.raises(StoreFormatError, match=says):
        sources.find(IDENTITY.weights)
    (reason,) = sources.unreadable()
    assert IDENTITY.weights in reason


def test_a_matrix_is_kept_once_and_goes_when_nobody_needs_it(sources: Sources) -> None:
    used, other = "ab" * 32, "cd" * 32
    assert sources.importance_path(used) is None
    sources.keep_importance(used, b"first")
    sources.keep_importance(used, b"again")  # a name is a hash of the values: what stands there is not written over
    sources.keep_importance(other, b"others")
    path = sources.importance_path(used)
    assert path is not None
    assert path.read_bytes() == b"first"
    assert sources.forget_importance({used}) == len(b"others")
    assert (sources.importance_path(used), sources.importance_path(other)) == (path, None)
