"""``lamella build``: variants from plans, precisions and alphas, and what is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run, json_of


def test_plan_build_and_show_agree(run: Run, model: Path, measured: Path, tmp_path: Path) -> None:
    plan = tmp_path / "mixed.json"
    ask = ("plan", model, "--policy", "alpha", "--alpha", "0.4", "--measurement", measured)
    json_of(run(*ask, "--out", plan, "--json"))
    folder = tmp_path / "store"
    built = json_of(run("build", model, folder, "--plan", plan, "--json"))["built"][0]
    assert built["variant"] == "mixed"
    shown = json_of(run("store", "show", folder, "mixed", "--json"))
    assert shown["plan"]["tensors"] == json.loads(plan.read_text())["tensors"]
    assert built["bytes"] == shown["bytes"] == sum(s["n_bytes"] for s in shown["shards"])


def test_alpha_variants_share_layers(run: Run, model: Path, measured: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    built = json_of(run("build", model, folder, "--alpha", "0.1,0.5,0.9", "--measurement", measured, "--json"))
    assert [b["variant"] for b in built["built"]] == ["alpha-0.1", "alpha-0.5", "alpha-0.9"]
    usage = json_of(run("store", "du", folder, "--json"))
    assert usage["joint_bytes"] < usage["sum_of_variants_bytes"]
    assert [v["name"] for v in usage["variants"]] == ["alpha-0.1", "alpha-0.5", "alpha-0.9"]


def test_channel_scheme(run: Run, model: Path, tmp_path: Path) -> None:
    built = json_of(run("build", model, tmp_path / "s", "--precision", "int4", "--scheme", "channel", "--json"))
    assert built["built"][0]["variant"] == "uniform-int4-channel"


def test_rounding_is_tuned_on_text(run: Run, model: Path, tmp_path: Path) -> None:
    text, store = tmp_path / "text.txt", tmp_path / "store"
    text.write_text("All happy families are alike; each unhappy family is unhappy in its own way. " * 20)
    tuning = ("--tune-on", text, "--tune-windows", "2")
    json_of(run("build", model, store, "--precision", "int4", "--name", "plain", "--json"))
    tuned = json_of(run("build", model, store, "--precision", "int4", "--name", "tuned", *tuning, "--json"))
    assert [(b["variant"], b["shards"] - b["reused"]) for b in tuned["built"]] == [("tuned", 3)]
    again = json_of(run("build", model, store, "--precision", "int4", "--name", "tuned", *tuning, "--json"))
    assert again["built"][0]["written_bytes"] == 0
    code, _, err = run("build", model, store, "--precision", "int4", "--name", "other", "--tune-on", text)
    assert (code, "too short" in err) == (2, True)
    code, _, err = run("build", model, store, "--precision", "int4", "--imatrix", text, *tuning)
    assert (code, "exclude each other" in err) == (2, True)
    code, _, err = run("build", model, store, "--precision", "int4", "--tune-windows", "2")
    assert (code, "--tune-on" in err) == (2, True)


def test_layers_are_drawn_by_their_bits_whatever_named_them(run: Run, model: Path, tmp_path: Path) -> None:
    for precision in ("Q6_K", "IQ4_NL", "fp16"):
        json_of(run("build", model, tmp_path / "s", "--precision", precision, "--json"))
    listed = run("store", "ls", tmp_path / "s")[1]
    for strip in ("666", "444", "FFF"):
        assert strip in listed


def test_a_file_that_is_no_plan_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    for content, says in ((b"{}", "lamella.plan"), (b"\xff", "not JSON"), (b'{"format": "lamella.plan"}', "version")):
        (tmp_path / "p.json").write_bytes(content)
        code, _, err = run("build", model, tmp_path / "s", "--plan", tmp_path / "p.json")
        assert code == 5
        assert says in err


def test_a_file_that_is_no_model_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    code, _, err = run("build", tmp_path / "x.gguf", tmp_path / "s", "--precision", "int8")
    assert code == 3
    assert "not a GGUF file" in err
    assert not (tmp_path / "s").exists()


def test_two_variants_of_one_name_are_refused_before_work(run: Run, model: Path, tmp_path: Path) -> None:
    code, _, err = run("build", model, tmp_path / "s", "--precision", "int8,int8")
    assert code == 2
    assert "uniform-int8" in err
    code, _, err = run("build", model, tmp_path / "s", "--precision", "int8,int4", "--name", "x")
    assert code == 2
    assert not (tmp_path / "s").exists()
