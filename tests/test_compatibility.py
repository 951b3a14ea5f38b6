"""The promise of docs/artifacts.md: what older versions wrote is read, what newer ones write is refused by name.

``tests/golden/version-1`` holds documents as an early 0.1.0 wrote them (2026-11-21); never change them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamella import api
from lamella.cli import main
from lamella.core.artifacts import Measurement, Plan, Variant, from_json
from lamella.core.errors import ArtifactError, StoreFormatError
from lamella.store.store import Store

GOLDEN = Path(__file__).parent / "golden"
KINDS = ("measurement", "plan", "variant")
OLD = sorted(path for path in GOLDEN.glob("version-*/*.json") if path.stem in KINDS)


def read(path: Path, data: bytes | None = None) -> Measurement | Plan | Variant:
    data = path.read_bytes() if data is None else data
    if path.stem == "measurement":
        return from_json(Measurement, data, path.name)
    return from_json(Plan, data, path.name) if path.stem == "plan" else from_json(Variant, data, path.name)


@pytest.mark.parametrize("path", OLD, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_old_documents_are_read(path: Path) -> None:
    found = read(path)
    plan = found.plan if isinstance(found, Variant) else found
    assert plan.model.name.startswith("Smollm2 135M")
    assert [one.layer for one in plan.layers] == list(range(30))


def test_an_old_measurement_says_what_it_said() -> None:
    found = api.read_measurement(GOLDEN / "version-1" / "measurement.json")
    assert found.metric == "jaccard"
    assert found.layers[0].mean == 0.9951079622132254
    assert found.tensors in ((), [])


def test_an_old_plan_can_still_be_built() -> None:
    """Every tensor has a type, and sizes and limit are those of the day."""
    document = json.loads((GOLDEN / "version-1" / "plan.json").read_text())
    plan = api.read_plan(GOLDEN / "version-1" / "plan.json")
    assert dict(plan.tensors) == document["tensors"]
    assert (plan.bytes.total, plan.budget_bytes, plan.fits) == (
        document["bytes"]["total"],
        document["budget_bytes"],
        document["fits"],
    )


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_newer_documents_are_refused_with_both_versions(path: Path) -> None:
    newer = json.dumps({**json.loads(path.read_text()), "format_version": 99}).encode()
    with pytest.raises(ArtifactError, match=r"format version 99; this version of Lamella .* reads 1 to 1"):
        read(path, newer)


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_unknown_fields_are_ignored(path: Path) -> None:
    later = json.dumps({**json.loads(path.read_text()), "of_later": {"days": 1}}).encode()
    assert read(path, later) == read(path)


def test_the_command_refuses_a_newer_document_with_exit_code_5(tmp_path: Path) -> None:
    path = tmp_path / "measurement.json"
    document = json.loads((GOLDEN / "version-1" / "measurement.json").read_text())
    path.write_text(json.dumps({**document, "format_version": 2}))
    code = main(["plan", "spec:llama-2-7b", "--memory", "6GiB", "--measurement", str(path)])
    assert code == ArtifactError.exit_code == 5


def test_an_old_profile_is_read() -> None:
    profile = api.read_profile(GOLDEN / "version-1" / "profile.json")
    assert profile.variants
    assert all(variant.steps for variant in profile.variants)


def test_an_old_store_is_opened(tmp_path: Path) -> None:
    data = (GOLDEN / "version-1" / "store.json").read_bytes()
    (tmp_path / "store.json").write_bytes(data)
    assert Store.open(tmp_path).identity.name.startswith("Smollm2 135M")
    (tmp_path / "store.json").write_bytes(data.replace(b'"format_version": 1', b'"format_version": 2'))
    with pytest.raises(StoreFormatError, match="format version 2"):
        Store.open(tmp_path)
