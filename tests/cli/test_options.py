"""What commands make of the words that name a store and a variant, and of settings that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lamella.batching.settings import EngineSettings
from lamella.cli.options import split_target
from lamella.cli.served import find_served, lower_ceiling
from lamella.core.errors import InvalidRequest
from lamella.core.units import GIB
from lamella.qos.objectives.stated import Objectives
from tests.cli.conftest import Run


def test_a_folder_whose_name_has_an_at_is_taken_as_it_is(store: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(store, tmp_path / "a@b", symlinks=True))
    assert split_target(str(folder)) == (folder, None)
    assert split_target(f"{folder}@small") == (folder, "small")
    for target, variant in ((str(folder), None), (f"{folder}@uniform-int4", "uniform-int4")):
        found = find_served(target, None, EngineSettings(store=""))
        assert (found.store.path, found.variant, found.variants, found.is_model) == (folder, variant, None, False)


@pytest.mark.parametrize(
    ("said", "promised", "lower"),
    [
        (None, None, None),
        ("2GiB", None, "2GiB"),
        ("2GiB", 3 * GIB, "2GiB"),
        ("2GiB", GIB, "1024MiB"),
        (None, GIB + 1, str(GIB + 1)),
    ],
)
def test_a_model_is_planned_for_the_ceiling_that_its_engine_will_have(
    said: str | None, promised: int | None, lower: str | None
) -> None:
    assert lower_ceiling(said, Objectives(memory_bytes=promised)) == lower
    assert lower_ceiling(said, None) == said


def test_objectives_that_exclude_a_device_are_said_before_its_model_is_made_ready(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "o.toml").write_text('memory = "1GiB"\n[class.chat]\n')
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path / "cache"))
    code, _, err = run("serve", model, "--device", "CPU", "--objectives", tmp_path / "o.toml")
    assert (code, (tmp_path / "cache").exists()) == (2, False), err


@pytest.mark.parametrize("target", ["@small", "nowhere@"])
def test_half_a_target_is_refused(target: str) -> None:
    with pytest.raises(InvalidRequest, match="is not STORE or STORE@VARIANT"):
        split_target(target)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--certificate", "x", "private key"),
        ("--max-body", "x", "no memory size"),
        ("--kv-type", "x", "'x' is no KV cache type; known: F32, F16"),
        ("--context", "0", "'--context': Input should be greater than or equal to 1"),
        ("--cells", "100", "--cells must be 0 or at least --context, not 100 and 4096"),
        ("--cells", "-1", "'--cells': Input should be greater than or equal to 0"),
        ("--max-prompt-tokens", "0", "most tokens of one prompt must be at least 1"),
        ("--policy", "x", "no policy 'x'; there are: static, static:VARIANT, threshold"),
        ("--queue", "-1", "--queue must be at least 0"),
    ],
)
def test_what_a_server_cannot_do_is_refused_before_its_model_is_made_ready(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, says: str
) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))
    code, out, err = run("serve", model, option, value)
    assert (code, out) == (2, "")
    assert says in err
    assert not list(tmp_path.iterdir())


def test_a_certificate_that_cannot_be_used_is_said_before_a_model_is_made_ready(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").touch()
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path / "cache"))
    for name, says in (("nowhere.pem", "No such file"), ("empty", "cannot use")):
        path = tmp_path / name
        code, _, err = run("serve", model, "--certificate", path, "--private-key", path)
        assert (code, says in err) == (2, True), err
    assert not (tmp_path / "cache").exists()
