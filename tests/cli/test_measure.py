"""``lamella measure`` and ``lamella imatrix``: what is gathered from a model and a text."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run, json_of


def test_measure_writes_document_and_plot(run: Run, model: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "m.json", tmp_path / "m.png"
    shown = json_of(
        run("measure", model, "--samples", "2", "--window-tokens", "16", "--out", out, "--plot", plot, "--json")
    )
    assert shown["metric"] == "jaccard"
    assert [x["layer"] for x in shown["layers"]] == [0, 1, 2]
    assert json.loads(out.read_text())["layers"] == shown["layers"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_measure_takes_tagged_texts(run: Run, model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"some words about {name} " * 200)
    found = json_of(
        run("measure", model, "--metric", "cosine", "--samples", "2", "--window-tokens", "16",
            "--calibration", f"one={tmp_path / 'a'}", "--calibration", f"two={tmp_path / 'b'}", "--json")
    )  # fmt: skip
    assert set(found["per_task"]) == {"one", "two"}


def test_an_importance_matrix_is_gathered_and_built_with(run: Run, model: Path, tmp_path: Path) -> None:
    text, out, store = tmp_path / "text.txt", tmp_path / "m.gguf", tmp_path / "store"
    text.write_text("All happy families are alike; each unhappy family is unhappy in its own way. " * 5)
    gathered = json_of(run("imatrix", model, "--calibration", text, "--window-tokens", 64, "--out", out, "--json"))
    assert (gathered["tensors"], gathered["window_tokens"]) == (22, 64)  # of three layers, and the head
    asked = ("imatrix", model, "--calibration", text, "--window-tokens", 64, "--no-head", "--out", tmp_path / "n.gguf")
    assert json_of(run(*asked, "--json"))["tensors"] == 21
    built = json_of(run("build", model, store, "--precision", "IQ2_XXS", "--imatrix", out, "--json"))
    assert [b["variant"] for b in built["built"]] == ["uniform-IQ2_XXS"]
    code, _, err = run("build", model, tmp_path / "other", "--precision", "IQ2_XXS")
    assert (code, "importance matrix" in err) == (3, True)
    code, _, err = run("build", model, store, "--precision", "int4", "--imatrix", text)
    assert (code, "no importance matrix" in err) == (5, True)
