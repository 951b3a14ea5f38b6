"""Files are opened by a child with limits first: what kills, hangs or fills it is one error here, and asked once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lamella import api
from lamella.core.errors import ArtifactError, HarmfulFile, ModelError, NotGguf, TruncatedModel
from lamella.llama import looking
from lamella.resources import first_look
from lamella.resources.first_look import LookLimits, look_first
from tests.fakes.tiny_model import write_tiny_model


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf", n_layers=1, n_embd=32, n_ff=32)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Commands of the children that were started."""
    commands: list[Sequence[str]] = []
    real = subprocess.run

    def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return real(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def kills(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Children run this instead of reading."""
    real = subprocess.run

    def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        shut = f"from lamella.llama import looking; looking.shut_in({command[-2]}, {command[-1]}); {code}"
        return real([sys.executable, "-c", shut], **options)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_good_file_is_asked_about_once_a_process_and_noted_for_the_next(
    tiny: Path, tmp_path: Path, asked: list[Sequence[str]]
) -> None:
    cache = tmp_path / "cache"
    look_first(tiny, cache)
    look_first(tiny, cache)
    assert len(asked) == 1
    first_look.look_once.cache_clear()  # another process
    look_first(tiny, cache)
    assert len(asked) == 1
    first_look.look_once.cache_clear()
    look_first(tiny, tmp_path / "another cache")
    assert len(asked) == 2


def test_a_file_that_changed_is_another_even_where_size_and_time_are_set_back(
    tiny: Path, tmp_path: Path, asked: list[Sequence[str]]
) -> None:
    look_first(tiny, tmp_path)
    before = tiny.stat()
    with tiny.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(tiny, ns=(before.st_atime_ns, before.st_mtime_ns))
    look_first(tiny, tmp_path)
    assert len(asked) == 2


def test_a_note_that_was_tampered_with_is_none(tiny: Path, tmp_path: Path, asked: list[Sequence[str]]) -> None:
    look_first(tiny, tmp_path)
    (note,) = (tmp_path / "first-look").iterdir()
    note.unlink()
    note.write_bytes(b'{"format": "lamella.first-look", "format_version": 1, "files": []}')
    first_look.look_once.cache_clear()
    look_first(tiny, tmp_path)
    assert len(asked) == 2


def test_all_parts_of_a_split_model_are_looked_at(tiny: Path, tmp_path: Path, asked: list[Sequence[str]]) -> None:
    api.build(tiny, tmp_path / "store", api.plan(tiny, "uniform", precision="int8"), "eight")
    parts = sorted((tmp_path / "store" / "variants" / "eight").glob("*.gguf"))
    asked.clear()
    look_first(parts[0])
    look_first(parts[1])  # the same files, asked for by another
    assert [command[5] for command in asked] == [str(parts[0]), str(parts[1])]
    shard = parts[2].resolve()
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(TruncatedModel):
        look_first(parts[0])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        ("raise ValueError('a fault of ours')", "ValueError: a fault of ours"),
        ("import time; time.sleep(60)", "for 1 s without end"),
        ("x = bytearray(1 << 30)", "MemoryError"),
    ],
)
def test_what_ends_the_child_is_one_error_here(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    kills(monkeypatch, code)
    seconds = 1 if "sleep" in code else 60
    with pytest.raises(HarmfulFile, match=message) as caught:
        look_first(tiny, limits=LookLimits(512 << 20, seconds))
    assert str(tiny) in str(caught.value)
    assert caught.value.exit_code == ModelError.exit_code


def test_what_is_refused_is_refused_as_here_and_never_noted(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("GGUF is not all that it takes")
    (tmp_path / "no.gguf").write_text("text")
    for name in ("text.gguf", "no.gguf"):
        with pytest.raises(NotGguf, match=name):
            look_first(tmp_path / name, tmp_path / "cache")
    with pytest.raises(ArtifactError, match="no importance matrix"):
        look_first(tmp_path / "no.gguf", kind="importance")
    assert not (tmp_path / "cache").exists()


def test_the_front_door_looks_first(tmp_path: Path, asked: list[Sequence[str]]) -> None:
    tiny = write_tiny_model(tmp_path / "another.gguf", n_layers=1, n_embd=32, n_ff=32)
    api.load(tiny)
    assert [command[4:6] for command in asked] == [["model", str(tiny)]]
    api.import_file(tiny, tmp_path / "store")
    assert len(asked) == 1
    with pytest.raises(ModelError, match=r"gone\.gguf does not exist"):
        api.load(tmp_path / "gone.gguf")


# --- the child's limits ----------------------------------------------------------------------------------------------


def shut_in(code: str) -> str:
    """What a process prints that is shut in."""
    before = "from lamella.llama import looking; gone = looking.shut_in(256 << 20, 5)"
    command = [sys.executable, "-c", f"{before}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()


def test_the_child_has_no_memory_beyond_its_limit() -> None:
    code = "try:\n    bytearray(512 << 20)\nexcept MemoryError:\n    print('refused')"
    assert shut_in(code) == "refused"


def test_the_child_writes_into_no_file(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    code = f"try:\n    open({path!r}, 'wb', 0).write(b'a')\nexcept OSError as error:\n    print(error.strerror)"
    assert shut_in(code) == "File too large"


def test_the_child_reaches_no_network_where_the_system_lets_it() -> None:
    said = shut_in(
        "import socket\nwith socket.socket() as s:\n    s.settimeout(2)\n    try:\n"
        "        s.connect(('127.0.0.1', 9))\n    except OSError as error:\n        print(gone, error.strerror)"
    )
    if not said.startswith("True"):
        pytest.skip("this system gives no network namespace")
    assert said == "True Network is unreachable"  # its loopback is down; elsewhere it would be refused


def test_the_child_hears_of_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_TOKEN", "secret")
    environment = first_look._environment()
    assert "LAMELLA_TOKEN" not in environment
    assert environment["PATH"] == os.environ["PATH"]
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


def test_a_file_that_takes_too_much_memory_says_so(tiny: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """In the child: Python's own ``MemoryError`` becomes an answer."""

    def much(kind: str, path: Path) -> None:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looking, "look", much)
        patch.setattr(looking, "shut_in", lambda *_: True)
        looking.main("model", str(tiny), str(64 << 20), "5")
    assert b"takes more than 64 MiB" in capfdbinary.readouterr().out
