"""Models from the Hugging Face Hub, by its own client, against a stand-in; and the command that converts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.core.errors import InvalidRequest, ModelError, RemoteFailed, RemoteInvalid
from lamella.remote import conversion
from lamella.remote.conversion import Converter
from lamella.remote.hub import HubFile, HubReport, HubSource, choose, pull_from_hub
from tests.fakes.hub import FakeHub

pytest.importorskip("huggingface_hub")

ONE = b"GGUF one" * 1000
PARTS = {f"big/m-0000{i}-of-00002.gguf": b"part %d" % i * 500 for i in (1, 2)}
REPOSITORIES = {
    "o/one": {"README.md": b"words", "model.gguf": ONE},
    "o/many": {"a.Q4_0.gguf": b"four", "a.Q8_0.gguf": b"eight", **PARTS},
    "o/tensors": {"model.safetensors": b"weights", "config.json": b"{}", "logo.png": b"picture"},
    "o/words": {"README.md": b"words"},
    "o/evil": {"../../evil.gguf": b"evil"},
}


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub(REPOSITORIES)


@pytest.fixture
def endpoint(hub: FakeHub) -> Iterator[str]:
    with hub.serving() as url:
        yield url


def fetch(text: str, folder: Path, endpoint: str) -> HubReport:
    return pull_from_hub(HubSource.parse(text), folder, endpoint=endpoint, quiet=True)


def test_the_only_model_of_a_repository_is_meant(hub: FakeHub, endpoint: str, tmp_path: Path) -> None:
    report = fetch("hf:o/one", tmp_path, endpoint)
    assert report.path == tmp_path / "model.gguf"
    assert report.path.read_bytes() == ONE
    assert (report.n_files, report.n_bytes, report.converted) == (1, len(ONE), False)
    fetch("hf:o/one", tmp_path, endpoint)
    assert hub.fetched == ["model.gguf"]  # the second time it was there


def test_one_of_several_must_be_named(hub: FakeHub, endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"3 models; name one, .*a\.Q4_0\.gguf, a\.Q8_0\.gguf, big/m-00001"):
        fetch("hf:o/many", tmp_path, endpoint)
    assert fetch("hf:o/many/a.Q8_0.gguf", tmp_path, endpoint).path.read_bytes() == b"eight"
    with pytest.raises(InvalidRequest, match=r"no GGUF file 'b\.gguf'; there are: a\.Q4_0\.gguf"):
        fetch("hf:o/many/b.gguf", tmp_path, endpoint)
    assert hub.fetched == ["a.Q8_0.gguf"]


def test_all_parts_of_a_split_model_come(endpoint: str, tmp_path: Path) -> None:
    report = fetch("hf:o/many/big/m-00002-of-00002.gguf", tmp_path, endpoint)
    assert report.path == tmp_path / "big" / "m-00001-of-00002.gguf"
    assert {name: (tmp_path / name).read_bytes() for name in PARTS} == PARTS


def test_missing_parts_are_seen_before_anything_is_fetched() -> None:
    files = [HubFile("m-00001-of-00003.gguf", 1, ""), HubFile("m-00003-of-00003.gguf", 1, "")]
    with pytest.raises(RemoteInvalid, match="one of 3 parts, of which 2 are there"):
        choose(HubSource("o/x"), files)


def test_wrong_bytes_are_removed(hub: FakeHub, endpoint: str, tmp_path: Path) -> None:
    hub.wrong.add("model.gguf")
    with pytest.raises(RemoteInvalid, match=r"model\.gguf of o/one has SHA-256"):
        fetch("hf:o/one", tmp_path, endpoint)
    assert not (tmp_path / "model.gguf").exists()


def test_a_name_that_leads_out_of_the_folder(hub: FakeHub, endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteInvalid, match="leads out of the folder"):
        fetch("hf:o/evil", tmp_path / "in" / "here", endpoint)
    assert hub.fetched == []


def test_an_unknown_repository_and_an_unreachable_hub(hub: FakeHub, endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteFailed, match="hf:o/none: RepositoryNotFoundError"):
        fetch("hf:o/none", tmp_path, endpoint)
    with pytest.raises(InvalidRequest, match="neither GGUF files nor safetensors"):
        fetch("hf:o/words", tmp_path, endpoint)


@pytest.mark.parametrize("text", ["hf:", "hf:one", "hf:/one", "hf:../x", "hf:o/..", "hf:o r/x"])
def test_what_names_no_repository(text: str) -> None:
    with pytest.raises(InvalidRequest, match="names no repository"):
        HubSource.parse(text)


def test_the_command_takes_the_endpoint_from_the_environment(endpoint: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": endpoint}
    command = [sys.executable, "-m", "lamella", "pull", "hf:o/one", str(tmp_path / "models"), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(tmp_path / "models" / "model.gguf")


# safetensors


def checkout(tmp_path: Path, script: str) -> Path:
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / conversion.SCRIPT).write_text(script)
    return folder


def test_safetensors_need_a_checkout_and_torch(
    hub: FakeHub, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: Path | None, match: str) -> None:
        with pytest.raises(InvalidRequest, match=match):
            pull_from_hub(HubSource("o/tensors"), tmp_path, converter=Converter(folder), endpoint=endpoint, quiet=True)

    refused(None, "set LAMELLA_LLAMA_CPP to a checkout")
    refused(tmp_path, "has no convert_hf_to_gguf.py")
    monkeypatch.setattr(conversion, "_NEEDED", ("no_such_package",))
    refused(checkout(tmp_path, ""), r"needs no_such_package: pip install 'lamella\[convert\]'")
    assert hub.fetched == []


def test_the_script_gets_the_folder_and_makes_the_model(
    hub: FakeHub, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script of ours in the place of llama.cpp's: it writes down its arguments as the model."""
    monkeypatch.setattr(conversion, "_NEEDED", ())
    script = "import sys, pathlib\npathlib.Path(sys.argv[3]).write_text(' '.join(sys.argv[1:]))"
    converter, folder = Converter(checkout(tmp_path, script)), tmp_path / "models"
    report = pull_from_hub(HubSource("o/tensors"), folder, converter=converter, endpoint=endpoint, quiet=True)
    assert report.converted
    assert report.path == folder / "tensors.gguf"
    assert report.path.read_text() == f"{folder} --outfile {folder / '.tensors.part.gguf'} --outtype auto"
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]


def test_a_script_that_fails_leaves_no_model(tmp_path: Path) -> None:
    script = "import sys, pathlib\npathlib.Path(sys.argv[3]).write_text('half')\nsys.exit(3)"
    with pytest.raises(ModelError, match="ended with exit code 3"):
        Converter(checkout(tmp_path, script)).convert(tmp_path, "m")
    assert list(tmp_path.glob("*.gguf")) == list(tmp_path.glob(".*.gguf")) == []
