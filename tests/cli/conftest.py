"""How tests call the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.cli import main
from tests.qos.conftest import profiled_store as profiled_store  # a fixture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Run a command; gives exit code, standard output, standard error.  Machine measurements go to a fresh folder."""
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("LAMELLA_THREADS", "1")
    monkeypatch.delenv("LAMELLA_DEVICE", raising=False)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call
