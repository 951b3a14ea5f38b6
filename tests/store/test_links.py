"""A store that somebody else has packed: links in it lead nobody out, be it to read, to write or to delete."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import httpx
import pytest

from lamella.core.errors import StoreFormatError
from lamella.remote.serving import StoreServer
from lamella.store.layout import Layout
from lamella.store.store import Store
from tests.store.conftest import IDENTITY, MakeVariant, add_shard


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Files that are none of the store's."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "private").write_text("secret")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "incoming", "leases", "shards", "variants", "recipes", "pins", "origins", "sources",
        "shards/ab", "recipes/ab", "dropped/ab", "origins/ab", "variants/w", "use/w",
    ],
)  # fmt: skip
def test_a_folder_that_leads_out_is_refused_before_anything_is_written(
    store: Store, make_variant: MakeVariant, outside: Path, name: str
) -> None:
    make_variant("v", b"a")
    folder = store.path / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(outside)
    with pytest.raises(StoreFormatError, match=f"{name} leads out of the store, to {outside}"):
        Store.open(store.path)
    assert [path.name for path in outside.iterdir()] == ["private"]


@pytest.mark.parametrize("what", ["shard", "document", "recipe", "link"])
def test_a_file_that_leads_out_is_refused(store: Store, make_variant: MakeVariant, outside: Path, what: str) -> None:
    made = make_variant("v", b"a")
    store.remember("e" * 64, {}, made.shards[0])
    layout = Layout(store.path)
    path = {
        "shard": layout.shard(made.shards[0].id),
        "document": layout.variant_document("v"),
        "recipe": layout.recipe("e" * 64),
        "link": store.first_link("v"),
    }[what]
    contents = path.read_bytes()
    path.unlink()
    (outside / "copy").write_bytes(contents)  # as good as what was there: it is the place that is refused
    path.symlink_to(outside / "copy")
    with pytest.raises(StoreFormatError, match=f"{path.name} leads out of the store, to {outside}"):
        Store.open(store.path)


def test_a_variants_links_are_looked_at_where_its_folder_is_a_link(
    store: Store, make_variant: MakeVariant, outside: Path
) -> None:
    made = make_variant("v", b"a")
    (store.path / "a" / "b").mkdir(parents=True)
    (store.path / "variants" / "v").rename(store.path / "a" / "b" / "v")
    (store.path / "variants" / "v").symlink_to("../a/b/v")
    (store.path / "a" / "shards").symlink_to(outside)  # where the links of the variant lead now
    with pytest.raises(StoreFormatError, match=f"leads out of the store, to {outside}"):
        Store.open(store.path)
    (store.path / "a" / "shards").unlink()
    assert Store.open(store.path).ready_paths(made)


def test_a_note_of_use_makes_no_file_outside(store: Store, make_variant: MakeVariant, outside: Path) -> None:
    make_variant("v", b"a")
    (store.path / "use").mkdir(exist_ok=True)
    (store.path / "use" / "v").symlink_to(outside / "new")  # there is no such file yet
    with pytest.raises(StoreFormatError, match="use/v leads out of the store"):
        Store.open(store.path)


def test_shards_of_another_store_that_are_linked_in_are_not_collected(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other", IDENTITY)
    shard = add_shard(other, "layer 0", b"theirs")
    linked = store.path / "shards" / shard.id[:2]
    linked.parent.mkdir(exist_ok=True)
    linked.symlink_to(other.shard_path(shard.id).parent)
    with pytest.raises(StoreFormatError, match="leads out of the store"):
        Store.open(store.path).collect_garbage()
    assert other.has_shard(shard)


def test_a_link_to_itself_leads_nowhere(store: Store, make_variant: MakeVariant) -> None:
    made = make_variant("v", b"a")
    (store.path / "use").mkdir(exist_ok=True)
    (store.path / "use" / "v").symlink_to("v")
    (store.path / "variants" / "w").symlink_to("w")
    assert Store.open(store.path).ready_paths(made)


def test_a_store_document_that_leads_out_is_refused(store: Store, outside: Path) -> None:
    (store.path / "store.json").rename(outside / "store.json")
    (store.path / "store.json").symlink_to(outside / "store.json")
    with pytest.raises(StoreFormatError, match="leads out of the store"):
        Store.open(store.path)


def test_links_inside_and_to_the_store_are_no_harm(store: Store, make_variant: MakeVariant, tmp_path: Path) -> None:
    make_variant("v", b"a")
    (store.path / "shards").rename(store.path / "moved")
    (store.path / "shards").symlink_to("moved")
    (tmp_path / "link").symlink_to(store.path)
    assert Store.open(tmp_path / "link").verify().ok


def test_deleting_takes_links_and_not_what_they_lead_to(store: Store, make_variant: MakeVariant, outside: Path) -> None:
    make_variant("v", b"a")
    (store.path / "variants" / "v" / "more").symlink_to(outside)
    (store.path / "incoming" / ("0" * 32)).symlink_to(outside)
    store.remove("v")  # it was opened before somebody laid them
    store.collect_garbage()
    assert (outside / "private").read_text() == "secret"


def test_a_served_store_gives_nothing_from_outside(store: Store, make_variant: MakeVariant, outside: Path) -> None:
    made = make_variant("v", b"a")
    layout, shard = Layout(store.path), made.shards[0].id
    server = StoreServer(store, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        paths = (f"shards/{shard[:2]}/{shard}.gguf", "variants/v/variant.json", "store.json")
        assert [httpx.get(f"{server.url}/{path}").status_code for path in paths] == [200, 200, 200]
        for place in (layout.shard(shard), layout.variant_document("v"), layout.document):
            place.unlink()
            place.symlink_to(outside / "private")
        assert [httpx.get(f"{server.url}/{path}").status_code for path in paths] == [404, 404, 404]
    finally:
        server.stop()
        thread.join(10)
        server.close()
