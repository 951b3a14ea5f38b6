"""A shard that arrives in pieces has one writer at a time, and what a dead one left is gone on from."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from lamella.core.errors import StorageFailed
from lamella.store.files import FILE_MODE
from lamella.store.parts import PartFile

SHARD = "ab" * 32


@pytest.fixture
def ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, who may write to what is read-only; here nobody may."""
    real = os.open

    def opened(path: Any, flags: int, mode: int = 0o777) -> int:
        file = Path(path)
        if flags & os.O_RDWR and file.exists() and not file.stat().st_mode & 0o200:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", opened)


def test_what_was_left_is_gone_on_from(tmp_path: Path) -> None:
    with PartFile(tmp_path, SHARD) as first:
        first.write(b"abc")
    with PartFile(tmp_path, SHARD) as second:
        second.write(b"def")
        assert (second.resumed_bytes, second.n_bytes, second.path) == (3, 6, first.path)
    assert first.path.read_bytes() == b"abcdef"


def test_a_beginning_that_turns_out_wrong_is_thrown_away(tmp_path: Path) -> None:
    with PartFile(tmp_path, SHARD) as first:
        first.write(b"damaged")
    with PartFile(tmp_path, SHARD) as second:
        second.restart()
        assert (second.resumed_bytes, second.n_bytes, second.sha256) == (0, 0, hashlib.sha256().hexdigest())
        second.write(b"abc")
        assert second.sha256 == hashlib.sha256(b"abc").hexdigest()
    assert first.path.read_bytes() == b"abc"


def test_a_part_in_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    with PartFile(tmp_path, SHARD) as part:
        assert part.path.exists()
    assert not part.path.exists()


def test_a_writer_that_gives_its_file_its_place_is_left_alone(tmp_path: Path, ordinary_user: None) -> None:
    """Before the rename it is read-only and stands where the next one looks."""
    with PartFile(tmp_path, SHARD) as first:
        first.write(b"abc")
        first.path.chmod(FILE_MODE)
        with PartFile(tmp_path, SHARD) as second:
            assert (second.path, second.n_bytes) == (tmp_path / f"{SHARD}.1.part", 0)
        first.place(tmp_path / "shard.gguf")
    assert (tmp_path / "shard.gguf").read_bytes() == b"abc"


def test_what_a_writer_that_died_in_between_left_is_begun_anew(tmp_path: Path, ordinary_user: None) -> None:
    with PartFile(tmp_path, SHARD) as first:
        first.write(b"abc")
    first.path.chmod(FILE_MODE)
    with PartFile(tmp_path, SHARD) as second:
        assert (second.path, second.n_bytes) == (first.path, 0)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / f"{SHARD}.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageFailed, match="cannot write"):
        PartFile(tmp_path, SHARD)
    assert not (tmp_path / "elsewhere").exists()
