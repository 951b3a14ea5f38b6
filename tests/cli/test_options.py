"""What commands make of the words that name a store and a variant, and of settings that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lamella.cli.options import split_target
from lamella.cli.served import Served, find_served
from lamella.core.errors import InvalidRequest
from tests.cli.conftest import Run


def test_a_folder_whose_name_has_an_at_is_taken_as_it_is(store: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(store, tmp_path / "a@b", symlinks=True))
    assert split_target(str(folder)) == (folder, None)
    assert split_target(f"{folder}@small") == (folder, "small")
    assert find_served(str(folder), None) == Served(str(folder))
    assert find_served(f"{folder}@uniform-int4", None) == Served(str(folder), "uniform-int4")


@pytest.mark.parametrize("target", ["@small", "nowhere@"])
def test_half_a_target_is_refused(target: str) -> None:
    with pytest.raises(InvalidRequest, match="is not STORE or STORE@VARIANT"):
        split_target(target)


@pytest.mark.parametrize(("option", "says"), [("--certificate", "private key"), ("--max-body", "no memory size")])
def test_what_a_server_cannot_do_is_refused_before_its_model_is_made_ready(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, says: str
) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    code, out, err = run("serve", model, option, "x")
    assert (code, out) == (2, "")
    assert says in err
    assert not list(tmp_path.iterdir())
