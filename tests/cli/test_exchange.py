"""``lamella export`` and ``lamella import``."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run, json_of


def test_export_and_import_have_what_scripts_rely_on(run: Run, store: Path, tmp_path: Path) -> None:
    file, copy = tmp_path / "four.gguf", tmp_path / "copy"
    exported = json_of(run("export", f"{store}@uniform-int4", file, "--json"))
    assert (exported["variant"], exported["file"]) == ("uniform-int4", str(file))
    assert exported["bytes"] == file.stat().st_size
    imported = json_of(run("import", file, copy, "--json"))
    assert (imported["variant"], imported["policy"], imported["from_export"]) == ("uniform-int4", "uniform", True)
    assert (imported["shards"], imported["shared"]) == (6, 0)
    again = json_of(run("import", file, copy, "--name", "again", "--json"))
    assert (again["shared"], again["new_bytes"], again["metadata_left_out"]) == (6, 0, [])
    assert "llama-server -m" in run("export", f"{copy}@again", tmp_path / "again.gguf")[1]
    assert "6 of 6 shards" in run("import", file, copy, "--name", "third")[1]


def test_export_and_import_complain_in_one_sentence(run: Run, store: Path, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_text("mine")
    for words, code, says in (
        (["export", store, tmp_path / "y.gguf"], 2, "uniform-int4, uniform-int8"),
        (["export", f"{store}@uniform-int4", file], 2, "--force"),
        (["export", f"{store}@huge", tmp_path / "y.gguf"], 6, "uniform-int4"),
        (["import", file, tmp_path / "s"], 3, "not a GGUF file"),
        (["import", model, tmp_path / "s", "--name", "../up"], 2, "cannot name a variant"),
        (["import", model, file], 6, "is a file"),
    ):
        found, out, err = run(*words)
        assert (found, out) == (code, "")
        assert says in err
        assert len(err.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
