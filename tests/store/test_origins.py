"""Where shards were pulled from: what is noted, and what nobody may find in a note."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamella.core.errors import InvalidRequest, StoreFormatError
from lamella.store.layout import Layout
from lamella.store.origins import Origins

SHARD, OTHER, THIRD = "ab" * 32, "cd" * 32, "ef" * 32
URL = "https://host:8090/models/tiny"


@pytest.fixture
def origins(tmp_path: Path) -> Origins:
    return Origins(Layout(tmp_path))


def _change(origins: Origins, root: Path, **changed: object) -> Path:
    """Note SHARD, and write other fields into the note."""
    origins.note(SHARD, URL)
    path = Layout(root).origin(SHARD)
    document = {**json.loads(path.read_text()), **changed}
    path.unlink()
    path.write_text(json.dumps(document))
    return path


def test_the_last_note_of_a_shard_is_found(origins: Origins) -> None:
    assert origins.find(SHARD) is None
    origins.note(SHARD, "http://old")
    origins.note(SHARD, URL)
    origins.note(OTHER, "http://old")
    assert (origins.find(SHARD), origins.find(OTHER)) == (URL, "http://old")
    assert origins.unreadable() == ()


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret@host/m",
        "https://token@host/m",
        "https://host/m?token=secret",
        "https://host/m#secret",
        "ftp://host/m",
        "file:///etc/passwd",
        "/models/m",
        "http:///m",
        "http://[::1/m",
        "",
    ],
)
def test_secrets_and_what_is_no_web_address_are_neither_noted_nor_believed(
    origins: Origins, tmp_path: Path, url: str
) -> None:
    with pytest.raises(InvalidRequest, match="no user name, password, query or fragment") as caught:
        origins.note(SHARD, url)
    assert "secret" not in str(caught.value)
    assert origins.find(SHARD) is None
    _change(origins, tmp_path, url=url)
    with pytest.raises(StoreFormatError, match=r"names no store; to mend it, run: lamella store repair"):
        origins.find(SHARD)


def test_a_note_about_another_shard_is_not_believed_and_can_be_removed(origins: Origins, tmp_path: Path) -> None:
    origins.note(OTHER, URL)
    path = _change(origins, tmp_path, shard=OTHER)
    with pytest.raises(StoreFormatError, match=f"{SHARD}.json is about another shard"):
        origins.find(SHARD)
    (reason,) = origins.unreadable()
    assert str(path) in reason
    origins.forget_unreadable()
    assert origins.find(SHARD) is None
    assert origins.find(OTHER) == URL


def test_notes_of_shards_that_are_gone_go(origins: Origins) -> None:
    for shard in (SHARD, OTHER, THIRD):
        origins.note(shard, URL)
    origins.forget_all_but({OTHER})
    assert [origins.find(shard) for shard in (SHARD, OTHER, THIRD)] == [None, URL, None]
