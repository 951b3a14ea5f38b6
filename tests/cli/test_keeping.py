"""Quota, trim, pin, restore, repair and sampled verify, as people and scripts use them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.cli import main
from lamella.core.errors import InvalidRequest
from lamella.core.units import parse_seconds
from lamella.store.store import Store
from tests.cli.conftest import Run, json_of
from tests.fakes.tiny_model import write_tiny_model


@pytest.fixture
def store(tmp_path: Path) -> Path:
    model = write_tiny_model(tmp_path / "tiny.gguf", n_embd=256, n_ff=512)
    assert main(["build", str(model), str(tmp_path / "store"), "--precision", "int8,int4", "--json"]) == 0
    return tmp_path / "store"


def test_the_round_of_a_quota(store: Path, run: Run) -> None:
    assert json_of(run("store", "quota", store, "--json"))["quota_bytes"] is None
    code, out, _ = run("store", "quota", store, "300KiB")
    assert code == 0
    assert "quota 300 KiB" in out
    assert f"lamella store trim {store}" in out
    trimmed = json_of(run("store", "trim", store, "--json"))
    assert trimmed["stored_bytes"] <= 300 * 1024
    assert trimmed["short_bytes"] == 0
    n_dropped = len(trimmed["dropped"])
    code, out, _ = run("store", "verify", store)
    assert code == 0
    assert f"{n_dropped} shards are dropped, can be rebuilt" in out
    assert "all good" in out
    names = ("uniform-int8", "uniform-int4")
    restored = [json_of(run("store", "restore", store, name, "--json"))["restored"] for name in names]
    assert sum(map(len, restored)) == n_dropped
    assert json_of(run("store", "verify", store, "--json"))["dropped"] == []
    assert "no quota" in run("store", "quota", store, "none")[1]


def test_a_quota_that_cannot_be_reached_says_why(store: Path, run: Run) -> None:
    for name in ("uniform-int8", "uniform-int4"):
        assert run("store", "pin", store, name)[0] == 0
    assert json_of(run("store", "quota", store, "1000", "--json"))["pinned"] == ["uniform-int4", "uniform-int8"]
    code, _, err = run("store", "trim", store)
    assert code == 6
    assert "its quota is 0.98 KiB" in err
    assert "pinned" in err
    assert json_of(run("store", "trim", store, "--json"), 6)["short_bytes"] > 0
    assert run("store", "unpin", store, "uniform-int8")[0] == 0
    assert json_of(run("store", "trim", store, "--json"), 6)["dropped"]
    assert "of its shards are dropped" in run("store", "pin", store, "uniform-int8")[1]


def test_a_build_says_what_it_dropped(store: Path, run: Run) -> None:
    assert run("store", "quota", store, "400KiB")[0] == 0
    code, _, err = run("build", store.with_name("tiny.gguf"), store, "--precision", "int6")
    assert code == 0
    assert "that can be got back; the store takes" in err
    assert "above the quota" not in err


def test_repair_and_its_exit_codes(store: Path, run: Run) -> None:
    model = store.with_name("tiny.gguf")
    shard = Store.open(store).variant("uniform-int4").shards[1]
    path = Store.open(store).shard_path(shard.id)
    path.unlink()
    moved = model.rename(model.with_name("moved.gguf"))
    code, out, _ = run("store", "repair", store)
    assert code == 6
    assert "damaged still" in out
    assert f"{model}: No such file" in out
    found = json_of(run("store", "repair", store, "--model", moved, "--json"))
    assert [(r["id"], r["origin"]) for r in found["repaired"]] == [(shard.id, "made again")]
    assert run("store", "verify", store)[0] == 0
    other = write_tiny_model(store.with_name("other.gguf"), n_embd=256, n_ff=512, seed=1)
    code, _, err = run("store", "repair", store, "--model", other)
    assert code == 6
    assert "is not what" in err
    path.unlink()
    code, _, err = run("store", "repair", store, "--from", store.with_name("nothing"))
    assert code == 6
    assert "is no store" in err


def test_verify_within_a_time(store: Path, run: Run) -> None:
    found = json_of(run("store", "verify", store, "--within", "1h", "--seed", "1", "--jobs", "1", "--json"))
    assert (found["share"], found["n_left"]) == (1.0, 0)
    code, out, _ = run("store", "verify", store, "--within", "0.000001ms")
    assert code == 0
    assert "0% of all bytes hashed; 9 shards" in out
    assert json_of(run("store", "verify", store, "--variant", "uniform-int4", "--json"))["n_shards"] == 6
    assert run("store", "verify", store, "--within", "soon")[0] == 2
    assert run("store", "verify", store, "--jobs", "0")[0] == 2


def test_durations() -> None:
    texts = ("10s", "500ms", "2min", "1h", "3", "1.5 m")
    assert [parse_seconds(text) for text in texts] == [10, 0.5, 120, 3600, 3, 90]
    for text in ("", "s", "0s", "-1s", "1 day"):
        with pytest.raises(InvalidRequest, match="is no duration"):
            parse_seconds(text)
