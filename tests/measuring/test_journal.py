"""Finished probes on disk, where the disk does not take them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.core.errors import StorageFailed
from lamella.measuring.journal import journal_file
from lamella.measuring.probes import Loss
from tests.fakes.disks import small_disk

DISK_BYTES, ROOM_BYTES = 1 << 16, 4096


def _keep(path: Path, n_probes: int) -> None:
    with journal_file(path) as begin:
        journal = begin({"model": "tiny"})
        for number in range(n_probes):
            journal.add(f"probe {number}", {"text": Loss(0.1, 0.2)})


def test_a_full_disk_is_told_as_such_when_the_file_is_begun_and_later(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", DISK_BYTES) as disk:
        (disk / "fill").write_bytes(bytes(DISK_BYTES - ROOM_BYTES))
        with pytest.raises(StorageFailed, match="cannot keep finished probes"):
            _keep(disk / "probes", 1000)
        with pytest.raises(StorageFailed, match="cannot keep finished probes"):
            _keep(disk / "others", 0)


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "probes")
    with pytest.raises(StorageFailed, match=r"cannot keep finished probes in .*: it is a named pipe, not a file"):
        _keep(tmp_path / "probes", 1)
