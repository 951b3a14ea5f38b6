"""``lamella pull``, ``push`` and ``serve-store`` as people and scripts use them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lamella.cli import main
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.web import Putting, serving, serving_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = write_tiny_model(tmp_path_factory.mktemp("cli") / "tiny.gguf")
    assert main(["build", str(model), str(model.with_name("store")), "--precision", "int8,int4", "--json"]) == 0
    return model.with_name("store")


def test_pull_says_what_moved(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving_store(store) as server:
        assert main(["pull", f"{server.url}@uniform-int8", str(tmp_path / "l")]) == 0
        assert "uniform-int8: 6 of 6 shards fetched" in capsys.readouterr().out
        assert main(["pull", f"{server.url}@uniform-int4", str(tmp_path / "l"), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["shards"], document["fetched"]) == (6, 3)
        assert document["moved_bytes"] + document["reused_bytes"] == document["bytes"]
        assert main(["pull", server.url, str(tmp_path / "l")]) == 2
    assert "there are: uniform-int4, uniform-int8" in capsys.readouterr().err


def test_a_fleet_machine_follows_a_name(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = str(tmp_path / "l")
    with serving_store(store) as server:
        assert main(["pull", f"{server.url}@uniform-int8", local, "--name", "current"]) == 0
        assert main(["pull", f"{server.url}@uniform-int4", local, "--name", "current"]) == 6
        assert "--replace" in capsys.readouterr().err
        assert main(["pull", f"{server.url}@uniform-int4", local, "--name", "current", "--replace"]) == 0
    assert main(["store", "show", local, "current", "--json"]) == 0
    assert main(["store", "verify", local]) == 0
    assert main(["pull", "hf:o/r", local, "--replace"]) == 2


def test_what_cannot_be_pulled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "http://127.0.0.1:9/s@v"]) == 2
    assert "say into which store" in capsys.readouterr().err
    assert main(["pull", str(tmp_path), str(tmp_path / "l")]) == 2
    assert "is no http or https URL" in capsys.readouterr().err
    assert main(["pull", "hf:nothing"]) == 2


def test_push_to_a_server_and_to_a_folder(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site").mkdir()
    with serving(tmp_path / "site", Putting) as site:
        assert main(["push", str(store), "uniform-int8", site.url, "--token", "t", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sent"] == 6
    assert {headers["Authorization"] for _, _, headers in site.asked} == {"Bearer t"}
    assert main(["push", str(store), "uniform-int8", str(tmp_path / "disk")]) == 0
    assert "6 of 6 shards sent to" in capsys.readouterr().out


def test_the_token_may_come_from_the_environment(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_store(store, token="secret") as server:
        assert main(["pull", f"{server.url}@uniform-int8", str(tmp_path / "l")]) == 10
        assert "401" in capsys.readouterr().err
        monkeypatch.setenv("LAMELLA_TOKEN", "secret")
        assert main(["pull", f"{server.url}@uniform-int8", str(tmp_path / "l")]) == 0


def test_serve_store_says_where_and_ends_with_ctrl_c(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lamella", "serve-store", str(store), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in range(5)]
        url = json.loads("".join(lines))["url"]
        assert main(["pull", f"{url}@uniform-int8", str(tmp_path / "l")]) == 0
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
