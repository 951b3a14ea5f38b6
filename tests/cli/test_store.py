"""``lamella store``: list, show, verify, remove, collect; test_keeping.py has what keeps a store small and whole."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run, json_of


def test_store_commands(run: Run, store: Path, tmp_path: Path) -> None:
    listed = json_of(run("store", "ls", store, "--json"))["variants"]
    assert [v["name"] for v in listed] == ["uniform-int4", "uniform-int8"]
    assert json_of(run("store", "verify", store, "--json"))["ok"] is True
    for words in (["ls", store], ["show", store, "uniform-int4"], ["verify", store], ["du", store]):
        code, out, _ = run("store", *words)
        assert code == 0
        assert out


def test_removed_variants_free_their_space_after_gc(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    json_of(run("build", model, folder, "--precision", "int8,int4", "--json"))
    assert json_of(run("store", "rm", folder, "uniform-int4", "--json"))["removed"] == ["uniform-int4"]
    freed = json_of(run("store", "gc", folder, "--json"))
    assert freed["n_shards"] == 3
    assert freed["freed_bytes"] > 0
    assert json_of(run("store", "verify", folder, "--json"))["ok"] is True


def test_a_flipped_bit_is_named_and_refused(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    json_of(run("build", model, folder, "--precision", "int8", "--json"))
    shown = json_of(run("store", "show", folder, "uniform-int8", "--json"))
    shard = next(s["id"] for s in shown["shards"] if s["label"] == "layer 1")
    path = next((folder / "shards").rglob(f"{shard}.gguf"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    code, out, _ = run("store", "verify", folder)
    assert code == 6
    assert shard in out
    assert "layer 1" in out
    code, _, err = run("run", folder, "hi", "--check", "--raw", "--context", "64")
    assert code == 6
    assert shard in err


def test_unknown_variants_list_what_there_is(run: Run, store: Path) -> None:
    code, _, err = run("run", f"{store}@huge", "hi")
    assert code == 6
    assert "uniform-int4" in err
    code, _, err = run("store", "rm", store, "uniform-int4", "huge")
    assert code == 6
    assert len(json_of(run("store", "ls", store, "--json"))["variants"]) == 2
