"""One variant that cannot be read is reported, is in no other's way, and can be removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from lamella.cli import store as commands
from lamella.core.errors import ShardDamaged, StoreFormatError, UnknownVariant
from lamella.store.store import Store
from tests.store.conftest import MakeVariant

BREAK: dict[str, Callable[[Path], object]] = {
    "cut off": lambda document: document.write_bytes(document.read_bytes()[:99]),
    "not UTF-8": lambda document: document.write_bytes(b"\xff\xfe"),
    "of a newer format": lambda document: document.write_text('{"format": "lamella.variant", "format_version": 9}'),
    "missing": lambda document: document.unlink(),
    "a folder": lambda document: document.rename(document.with_name("old")).with_name(document.name).mkdir(),
}


@pytest.fixture(params=list(BREAK))
def broken(request: pytest.FixtureRequest, store: Store, make_variant: MakeVariant) -> Store:
    """A whole variant ``good``, and ``bad``, which cannot be read."""
    make_variant("good", b"meta", b"layer 0 of good")
    make_variant("bad", b"meta", b"layer 0 of bad")
    BREAK[request.param](store.path / "variants/bad/variant.json")
    return store


def test_verify_reports_the_variant_and_checks_all_shards(broken: Store) -> None:
    report = broken.verify()
    assert not report.ok
    assert report.n_shards == 3
    assert not report.damaged
    assert not report.broken_links
    (reason,) = report.unreadable_variants
    assert reason.startswith("bad: ")
    assert "variants/bad/variant.json" in reason


def test_the_other_variant_works(broken: Store, make_variant: MakeVariant) -> None:
    broken.check(broken.variant("good"))
    make_variant("new", b"meta", b"layer 0 of new")
    assert broken.variant_names() == ["bad", "good", "new"]
    assert [v.name for v in broken.readable_variants()[0]] == ["good", "new"]


def test_damage_of_another_variant_is_still_named(broken: Store) -> None:
    path = broken.shard_path(broken.variant("good").shards[1].id)
    path.chmod(0o644)
    path.write_bytes(b"layer 0 of goof")
    with pytest.raises(ShardDamaged, match="layer 1 of good"):
        broken.check(broken.variant("good"))


def test_the_variant_can_be_removed_and_all_is_well(broken: Store) -> None:
    broken.remove("bad")
    assert broken.collect_garbage().n_shards == 1
    assert broken.verify().ok
    assert [v.name for v in broken.variants()] == ["good"]


def test_the_error_names_the_document_and_the_cure(store: Store, make_variant: MakeVariant) -> None:
    make_variant("bad", b"meta")
    (store.path / "variants/bad/variant.json").write_text("{")
    for read in (store.variants, store.usage, lambda: store.variant("bad")):
        with pytest.raises(StoreFormatError, match=rf"variants/bad/variant\.json.*lamella store rm {store.path} bad"):
            read()


def test_the_command_line_shows_it_and_removes_it(broken: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as exit_:
        commands.verify(broken.path)
    assert exit_.value.exit_code == 6
    assert "unreadable variant bad: " in capsys.readouterr().out
    with pytest.raises(UnknownVariant, match="there are: bad, good"):
        commands.remove(broken.path, ["bad", "none"])
    commands.remove(broken.path, ["bad"])
    assert broken.verify().ok
