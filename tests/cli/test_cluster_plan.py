"""``lamella cluster plan``: reads a cluster, places the layers, and sets rules beside the plan."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lamella.api import load, write_artifact
from lamella.core.artifacts import LayerScore, Measurement
from tests.cli.conftest import Run, json_of, write_losses
from tests.fakes.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("cluster") / "tiny.gguf", n_embd=256, n_ff=512, n_layers=4)


@pytest.fixture(scope="module")
def losses(model: Path) -> Path:
    return write_losses(model)


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """The example of docs/placement.md."""
    example = re.search(r"```json\n(.*?)```", (ROOT / "docs" / "placement.md").read_text(), re.DOTALL)
    assert example is not None
    path = tmp_path / "cluster.json"
    path.write_text(example.group(1))
    return path


def _plan(run: Run, model: Path, cluster: Path, losses: Path, *more: str | Path) -> tuple[int, str, str]:
    fixed = ("--cluster", cluster, "--measurement", losses, "--precisions", "int8,int4")
    return run("cluster", "plan", model, *fixed, *more)


def test_all_layers_are_placed_within_the_loss_budget(run: Run, model: Path, cluster: Path, losses: Path) -> None:
    document = json_of(_plan(run, model, cluster, losses, "--delta", "4", "--json", "--baselines", "--explain"))
    assert sum(len(s["precisions"]) for s in document["segments"]) == 4
    assert document["segments"][0]["node"] == "server"  # everything fits on the fast node
    assert document["account"]["loss"] <= 4
    assert document["gap"] <= 0.01
    rules = [b for b in document["baselines"].values() if "error" not in b]
    assert all(rule["objective"] >= document["bound"] for rule in rules)
    assert {"by-memory", "one-node", "equal-layers"} <= document["baselines"].keys()
    assert {g["change"] for g in document["explanation"]["gains"]} >= {"1.00 GiB more on server"}


def test_a_smaller_delta_asks_for_finer_layers(run: Run, model: Path, cluster: Path, losses: Path) -> None:
    def n_fine(delta: str) -> int:
        document = json_of(_plan(run, model, cluster, losses, "--delta", delta, "--json"))
        return sum(s["precisions"].count("int8") for s in document["segments"])

    largest = json_of(_plan(run, model, cluster, losses, "--delta", "1e9", "--json"))["account"]["loss"]
    assert n_fine("1e9") == 0
    assert 0 < n_fine(str(largest * 0.6)) < 4


def test_tables_and_a_drawing_for_people(run: Run, model: Path, cluster: Path, losses: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plan.svg"
    more = ("--delta", "4", "--baselines", "--explain", "--plot", plot)
    code, out, err = _plan(run, model, cluster, losses, *more)
    assert code == 0, err
    assert "within" in out
    assert "times the plan's" in out
    assert "hidden states travel" in out
    assert "baseline cloud-only" in out  # there is no cloud in the example
    assert "server" in plot.read_text()


def test_weight_differences_are_losses_too(run: Run, model: Path, cluster: Path) -> None:
    scores = {p: tuple(LayerScore(i, size) for i in range(4)) for p, size in (("int8", 0.01), ("int4", 0.1))}
    spec = load(model).spec
    measured = Measurement("weight-difference", spec.identity, {}, (), scores["int4"], per_precision=scores)
    write_artifact(measured, path := model.with_name("differences.json"))
    document = json_of(_plan(run, model, cluster, path, "--delta", "0.23", "--json"))
    assert document["account"]["loss"] == pytest.approx(0.22)  # two layers of each


def test_refusals(run: Run, model: Path, cluster: Path, losses: Path) -> None:
    assert _plan(run, model, cluster, losses, "--delta", "0")[0] == 4
    small = json.loads(cluster.read_text())
    for node in small["nodes"]:
        node["memory_bytes"] = 1000
    cluster.write_text(json.dumps(small))
    code, _, err = _plan(run, model, cluster, losses, "--delta", "100")
    assert code == 4
    assert "no placement keeps all limits" in err
    cluster.write_text(json.dumps({**small, "format_version": 2}))
    assert _plan(run, model, cluster, losses, "--delta", "1")[0] == 5
    cluster.write_text(json.dumps({**small, "links": []}))
    code, _, err = _plan(run, model, cluster, losses, "--delta", "1")
    assert code == 2
    assert "no link between server and laptop" in err
    cluster.write_text("{")
    assert _plan(run, model, cluster, losses, "--delta", "1")[0] == 5
