"""``lamella cluster share``: several models are placed on one cluster, within its memory and its time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lamella.api import load, write_artifact
from lamella.core.artifacts import Measurement
from tests.cli.conftest import Run
from tests.fakes.tiny_model import write_tiny_model
from tests.planning.losses import made_losses

DOCUMENT = (Path(__file__).parents[2] / "docs" / "placement.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of docs/placement.md, for a tiny model."""
    folder = tmp_path_factory.mktemp("share")
    model = write_tiny_model(folder / "tiny.gguf", n_embd=256, n_ff=512, n_layers=4)
    spec = load(model).spec
    write_artifact(Measurement("sensitivity", spec.identity, {}, (), (), tensors=made_losses(spec)), folder / "l.json")
    for example in re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL):
        described = json.loads(example)
        for tenant in described.get("tenants", ()):
            tenant |= {"model": str(model), "measurement": "l.json", "delta": 4.0, "precisions": ["int8", "int4"]}
        (folder / f"{described['format']}.json").write_text(json.dumps(described))
    return folder


def _share(run: Run, folder: Path, *more: str, **changed: Any) -> tuple[int, str, str]:
    tenants = folder / "lamella.tenants.json"
    if changed:
        described = json.loads(tenants.read_text()) | changed
        (tenants := folder / "changed.json").write_text(json.dumps(described))
    return run("cluster", "share", tenants, "--cluster", folder / "lamella.cluster.json", *more)


@pytest.mark.parametrize("more", [(), ("--exact",)])
def test_all_models_are_placed_within_the_limits(run: Run, folder: Path, more: tuple[str, ...]) -> None:
    code, out, err = _share(run, folder, "--json", *more)
    assert code == 0, err
    document = json.loads(out)
    assert [t["name"] for t in document["tenants"]] == ["chat", "batch"]
    assert all(sum(len(s["precisions"]) for s in t["segments"]) == 4 for t in document["tenants"])
    assert all(t["account"]["loss"] <= 4.0 for t in document["tenants"])
    assert all(n["used_bytes"] <= n["memory_bytes"] and n["busy"] <= 0.8 for n in document["nodes"].values())
    used = sum(n["used_bytes"] for n in document["nodes"].values())
    assert used == sum(sum(t["account"]["node_bytes"].values()) for t in document["tenants"])
    assert 0 < document["bound"] <= document["objective"]


def test_tables_for_people(run: Run, folder: Path) -> None:
    code, out, err = _share(run, folder)
    assert code == 0, err
    assert "2 models" in out
    assert "chat" in out
    assert "server" in out


def test_models_that_would_keep_nodes_too_busy_are_refused(run: Run, folder: Path) -> None:
    code, _, err = _share(run, folder, busy_limit=1e-9)
    assert code == 4
    assert "fit" in err


def test_documents_that_are_none_are_refused(run: Run, folder: Path) -> None:
    assert _share(run, folder, tenants=[])[0] == 2
    assert _share(run, folder, format_version=2)[0] == 5
    assert _share(run, folder, tenants=[{"name": "chat"}])[0] == 5
    code, _, err = _share(run, folder, tenants=[{"name": "a", "model": "no.gguf", "measurement": "no", "delta": 1.0}])
    assert code == 5
    assert "no" in err
