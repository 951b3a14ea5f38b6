"""``lamella inspect`` and ``lamella devices``: what there is to plan for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run, json_of


def test_inspect(run: Run, model: Path) -> None:
    document = json_of(run("inspect", model, "--json"))
    assert document["n_layers"] == 3
    assert len(document["layers"]) == 3
    assert document["bytes"] == sum(t["bytes"] for t in document["tensors"])
    assert "layer 2" in run("inspect", model)[1]


def test_devices(run: Run) -> None:
    document = json_of(run("devices", "--json"))
    assert document["chosen"] in [d["name"] for d in document["devices"]]
    assert all(0 <= d["free_bytes"] <= d["total_bytes"] for d in document["devices"])


def test_the_environment_chooses_the_device(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_DEVICE", "TPU9")
    code, _, err = run("devices")
    assert code == 2
    assert "TPU9" in err
    assert "CPU" in err
