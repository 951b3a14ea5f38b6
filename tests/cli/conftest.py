"""How tests call the command line, and what most of them call it with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella import api, load_spec
from lamella.api import write_artifact
from lamella.cli import main
from lamella.core.artifacts import Measurement
from tests.cli.programs import SERVED
from tests.fakes.tiny_model import write_tiny_model
from tests.leaks import leaks, strict_json
from tests.planning.losses import made_losses
from tests.qos.conftest import profiled_store as profiled_store  # a fixture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Run a command; gives exit code, standard output, standard error.  Machine measurements go to a fresh folder.

    Whatever a command prints with ``--json`` is a document for others.
    """
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("LAMELLA_THREADS", "1")
    monkeypatch.delenv("LAMELLA_DEVICE", raising=False)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        if "--json" in arguments:
            assert leaks(strict_json(out)) == []
        return code, out, err

    return call


def json_of(result: tuple[int, str, str], code: int = 0) -> Any:
    """The document that a command printed, which ended as expected."""
    found, out, err = result
    assert found == code, err
    return json.loads(out)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three layers, which tests leave as it is."""
    return write_tiny_model(tmp_path_factory.mktemp("cli") / "tiny.gguf", n_embd=256, n_ff=512)


@pytest.fixture(scope="session")
def store(model: Path) -> Path:
    """Two variants of it, ``uniform-int8`` and ``uniform-int4``, which tests leave as they are."""
    folder = model.with_name("store")
    assert main(["build", str(model), str(folder), "--precision", "int8,int4", "--json"]) == 0
    return folder


@pytest.fixture(scope="session")
def measured(model: Path) -> Path:
    """A measurement of its layers, without what each tensor loses."""
    path = model.with_name("measured.json")
    assert main(["measure", str(model), "--metric", "outlier", "--out", str(path), "--json"]) == 0
    return path


def write_losses(model: Path) -> Path:
    """A measurement beside the model of what each of its tensors loses, by formula."""
    spec = load_spec(model)
    made = Measurement("sensitivity", spec.identity, {}, (), (), tensors=made_losses(spec))
    write_artifact(made, path := model.with_name("losses.json"))
    return path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model and a cache in which it is ready, also for ``SERVED``; who changes something takes ``mine``."""
    folder = tmp_path_factory.mktemp("prepared")
    model = write_tiny_model(folder / "tiny.gguf", n_layers=2)
    for engine in (SERVED, None):
        api.prepare(str(model), folder / "cache", engine=engine, n_threads=1)
    return model, folder / "cache"


@pytest.fixture
def mine(prepared: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the cache, for the same model."""
    return prepared[0], Path(shutil.copytree(prepared[1], tmp_path / "cache", symlinks=True))
