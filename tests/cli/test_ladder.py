"""``lamella ladder``: plans together, builds into one store, and says what sharing cost and saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.cli.ladder import step_names
from lamella.core.errors import InvalidRequest
from lamella.store.store import Store
from tests.cli.conftest import Run, json_of, write_losses
from tests.fakes.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("ladder") / "tiny.gguf", n_embd=256, n_ff=512, n_layers=4)


@pytest.fixture(scope="module")
def losses(model: Path) -> Path:
    return write_losses(model)


def test_a_ladder_is_built_and_shares_what_it_says(run: Run, model: Path, losses: Path, tmp_path: Path) -> None:
    store, plot = tmp_path / "store", tmp_path / "ladder.svg"
    ask = ("ladder", model, store, "--measurement", losses, "--steps", "3", "--from", "8.5bpw", "--to", "5")
    document = json_of(run(*ask, "--budget", "1.5x", "--plot", plot, "--json"))
    steps = document["steps"]
    assert [s["variant"] for s in steps] == [f"ladder-{s['bits_per_weight']:.2f}bpw" for s in steps]
    assert document["joint_bytes"] <= document["budget_bytes"]
    opened = Store.open(store)
    assert sorted(opened.variant_names()) == sorted(s["variant"] for s in steps)
    headers = sum(v.n_bytes - v.plan.bytes.weights for v in opened.variants())
    assert document["joint_bytes"] <= opened.usage().joint_bytes <= document["joint_bytes"] + headers
    assert steps[0]["variant"] in plot.read_text()
    assert opened.variant(steps[1]["variant"]).plan.settings["step"] == "2 of 3"


def test_names_have_as_many_digits_as_tell_them_apart() -> None:
    assert step_names("x", [8.5, 4.25]) == ["x-8.50bpw", "x-4.25bpw"]
    assert step_names("x", [8.501, 8.502]) == ["x-8.501bpw", "x-8.502bpw"]
    with pytest.raises(InvalidRequest, match="farther apart"):
        step_names("x", [8.5, 8.5])


def test_what_it_says_last_is_a_command_that_runs(run: Run, model: Path, losses: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    out = run("ladder", model, store, "--measurement", losses, "--steps", "2")[1]
    said = out.strip().splitlines()[-1].rpartition("run it with: lamella ")[2].split()
    code, _, err = run(*said, "once", "--raw", "--max-tokens", "1", "--context", "64", "--layout", "mapped")
    assert (said[0], code) == ("run", 0), err


def test_a_dry_run_writes_nothing(run: Run, model: Path, losses: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    code, out, err = run("ladder", model, store, "--measurement", losses, "--steps", "2", "--dry-run")
    assert code == 0, err
    assert "of separate files" in out
    assert not store.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--from", "many"], "no number of bits per weight"),
        (["--budget", "some"], "no budget for a ladder"),
        (["--budget", "0.4x"], "at least 1x"),
        (["--within", "0.5"], "0.5 was asked"),
        (["--memory", "1GiB", "--steps", "2"], "not both"),
        (["--memory", "1GiB"], "at least 2 steps"),
        (["--context", "512"], "belong to --memory"),
        (["--steps", "1"], "'--steps': Input should be greater than or equal to 2"),
        (["--plot", "ladder.txt"], "must end in"),
    ],
)
def test_what_makes_no_ladder_is_refused_before_anything_is_built(
    run: Run, model: Path, losses: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    code, _, err = run("ladder", model, tmp_path / "store", "--measurement", losses, *options)
    assert code == 2
    assert says in err
    assert not (tmp_path / "store").exists()


def test_a_ladder_of_a_file_with_few_bits_begins_with_what_it_has(run: Run, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "q.gguf", n_embd=256, n_ff=512, dtype="Q4_0")
    document = json_of(
        run("ladder", model, tmp_path / "s", "--measurement", write_losses(model), "--dry-run", "--json")
    )
    bits = [step["bits_per_weight"] for step in document["steps"]]
    assert len(set(bits)) == len(bits) > 1
    assert document["steps"][0]["predicted_loss"] == 0
