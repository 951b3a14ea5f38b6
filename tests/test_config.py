"""The environment's settings."""

from __future__ import annotations

import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.cli import main
from lamella.config import Config
from lamella.core.errors import InvalidRequest

FOLDERS: list[tuple[str, str, str, str, Callable[[Config], Path]]] = [
    ("LAMELLA_CACHE", "XDG_CACHE_HOME", ".cache/lamella", "lamella", lambda c: c.cache_folder),
    ("LAMELLA_CLUSTER", "XDG_CONFIG_HOME", ".config/lamella/cluster", "lamella/cluster", lambda c: c.cluster_folder),
    ("LAMELLA_NODE", "XDG_DATA_HOME", ".local/share/lamella/node", "lamella/node", lambda c: c.node_folder),
]


@pytest.mark.parametrize(("own", "common", "at_home", "at_common", "folder"), FOLDERS)
def test_a_folder_is_where_its_variable_says_or_the_common_one_or_at_home(
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    common: str,
    at_home: str,
    at_common: str,
    folder: Callable[[Config], Path],
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert folder(Config.from_environment({})) == Path("/home/me") / at_home
    assert folder(Config.from_environment({common: "/common"})) == Path("/common") / at_common
    assert folder(Config.from_environment({common: "/common", own: "/own"})) == Path("/own")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a number which no user has."""

    def nobody(_: int) -> Any:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize(("own", "_common", "_at_home", "_at_common", "folder"), FOLDERS)
def test_a_user_without_a_home_is_told_what_to_set(
    own: str, _common: str, _at_home: str, _at_common: str, folder: Callable[[Config], Path]
) -> None:
    config = Config.from_environment({"LAMELLA_THREADS": "2"})
    assert config.n_threads == 2
    with pytest.raises(InvalidRequest, match=f"no home folder.*set {own} to a folder"):
        folder(config)
    assert folder(Config.from_environment({own: "/own"})) == Path("/own")


@pytest.mark.usefixtures("homeless")
def test_commands_that_need_no_folder_work_without_a_home(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("LAMELLA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert main(["store", "ls", str(tmp_path / "none")]) == 6
    assert main(["prepare", "smollm2"]) == InvalidRequest.exit_code
    assert "set LAMELLA_CACHE to a folder" in capsys.readouterr().err


def test_threads_are_a_number_from_1() -> None:
    for text in ("0", "-1", "many", "1.5", "²"):
        with pytest.raises(InvalidRequest, match=f"LAMELLA_THREADS must be a number from 1 to 512, not '{text}'"):
            Config.from_environment({"LAMELLA_THREADS": text})
    assert Config.from_environment({}).n_threads == 0
