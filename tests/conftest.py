"""What all tests need."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lamella.llama import looking
from lamella.resources import first_look

settings.register_profile(
    "repeated", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("searching", settings.get_profile("repeated"), derandomize=False)
settings.load_profile("repeated")  # --hypothesis-profile=searching draws other examples each time


def pytest_configure() -> None:
    """Take SIGINT as a terminal gives it: what a shell runs in the background ignores it, and its children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Close what llama-cpp-python opens on import and leaves open, which the interpreter's end would warn of."""
    utilities = sys.modules.get("llama_cpp._utils")
    if utilities is not None:
        utilities.outnull_file.close()
        utilities.errnull_file.close()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The user's cache stays as it is."""
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _looked_at_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of tests are of our own making: they are looked at in this process, which saves half a second for each.

    That a child does it, and what it survives, is tested in tests/resources/test_first_look.py.
    """
    if Path(str(request.path)).stem != "test_first_look":
        monkeypatch.setattr(first_look, "ask_child", lambda path, kind, limits: looking.look(kind, Path(path)))
