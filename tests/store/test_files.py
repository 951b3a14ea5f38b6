"""Files that are written for somebody who named them: asked about before, whole or not there afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lamella.core.errors import InvalidRequest, StorageFailed
from lamella.store.files import IncomingFile, check_new_file, has_living_owner, new_file, remove_dead
from lamella.store.store import Store


def test_asking_whether_a_file_can_be_written_leaves_everything_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    check_new_file(tmp_path / "there")
    check_new_file(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "old"


@pytest.mark.parametrize("name", ["nowhere/x", "file/x", "x" * 300])
def test_what_the_file_system_will_refuse_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed, match="cannot write"):
        check_new_file(tmp_path / name)
    with pytest.raises(StorageFailed, match="cannot write"), new_file(tmp_path / name, 1, replace=True):
        pass


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is a folder; name a file"):
        check_new_file(tmp_path)


def test_what_another_user_is_writing_is_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in ``incoming/`` are their writer's alone; root, as whom tests may run, is refused nothing."""
    with IncomingFile(store.path / "incoming") as file:
        opened = os.open

        def refusing(path: Any, *arguments: Any) -> int:
            if path == file.path:
                raise PermissionError(13, "Permission denied")
            return opened(path, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refusing)
            assert has_living_owner(file.path)
            assert remove_dead(file.path) is None
            assert store.leftovers().n_files == 0
            store.collect_garbage()
        assert file.path.exists()
