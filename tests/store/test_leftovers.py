"""What interrupted work left is counted, said in one line, and freed by gc."""

from __future__ import annotations

import pytest

from lamella.cli import store as commands
from lamella.store.files import IncomingFile
from lamella.store.leftovers import Leftovers
from lamella.store.store import Store
from tests.store.conftest import MakeVariant, add_shard, write_shard


def test_a_store_at_rest_has_none(store: Store, make_variant: MakeVariant, capsys: pytest.CaptureFixture[str]) -> None:
    make_variant("v", b"a")
    assert store.leftovers() == Leftovers(0, 0, 0, 0, 0)
    commands.list_variants(store.path)
    assert capsys.readouterr().err == ""


def test_what_the_dead_left_is_counted_and_what_the_living_do_is_not(store: Store, make_variant: MakeVariant) -> None:
    make_variant("v", b"a")
    add_shard(store, "layer 0", b"1234567")
    (store.path / "incoming" / "dead").write_bytes(b"12345")
    (store.path / "leases" / ("0" * 32)).write_text("lamella.lease 1\n")
    with store.lease() as lease, IncomingFile(store.path / "incoming") as living:
        living.write(b"half")
        write_shard(lease, "layer 1", b"at work")
        assert store.leftovers() == Leftovers(1, 5, 1, 1, 7)
    store.collect_garbage()
    assert store.leftovers() == Leftovers(0, 0, 0, 0, 0)


def test_shards_are_not_called_left_over_while_a_variant_cannot_be_read(
    store: Store, make_variant: MakeVariant
) -> None:
    make_variant("v", b"a")
    (store.path / "variants/v/variant.json").write_text("{")
    assert store.leftovers().n_shards == 0


def test_the_command_line_says_it_in_one_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    add_shard(store, "layer 0", b"1234567")
    cure = f"; finish it by building again, or free the space with: lamella store gc {store.path}\n"
    commands.list_variants(store.path)
    assert capsys.readouterr().err == f"in the store: 1 shard (7 B) that no variant uses{cure}"
    for name in ("0" * 32, "1" * 32):
        (store.path / "incoming" / name).write_bytes(b"12345")
    for command in (commands.list_variants, commands.verify):
        command(store.path)
        said = "interrupted work left 2 unfinished files (10 B) and 1 shard (7 B) that no variant uses"
        assert capsys.readouterr().err == said + cure
