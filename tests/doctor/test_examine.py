"""Looking at machines: recorded trees, commands that say what tests want, and a library that ends its process."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from lamella import api
from lamella.doctor import Facts, Status, diagnose, examine
from lamella.doctor.examine import run_command
from lamella.doctor.facts import LibraryFacts, ModelNeed
from lamella.doctor.selfcheck import Report, look_at_library, need_of
from lamella.llama.devices import Device
from lamella.store.store import Store
from tests.fakes.tiny_model import write_tiny_model

GOOD = Report(LibraryFacts("0.3.36", "", frozenset({"AVX2"}), ("CPU",), True), (Device("CPU", "cpu", "", "CPU", 1, 2),))
Look = Callable[..., Facts]


def line(report: Report) -> str:
    return msgspec.json.encode(report).decode() + "\n"


def answering(code: int = 0, said: str = "", errors: str = "") -> Callable[..., subprocess.CompletedProcess[str]]:
    """A way to run commands: compilers have a version, and the self-check ends so."""

    def run(command: Sequence[str], _: float) -> subprocess.CompletedProcess[str]:
        if "lamella.doctor.selfcheck" in command:
            return subprocess.CompletedProcess(command, code, said or line(GOOD), errors)
        return subprocess.CompletedProcess(command, 0, "c++ 12.2.0\nCopyright", "")

    return run


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """Examines an empty machine, but for what a test gives it."""

    def looked(**options: object) -> Facts:
        given = {"root": tmp_path / "root", "run": answering(), "which": lambda _: None, **options}
        return examine(tmp_path / "cache", **given)  # type: ignore[arg-type]

    return looked


def test_the_first_compiler_that_says_its_version_is_taken(look: Look) -> None:
    facts = look(which=lambda name: f"/usr/bin/{name}" if name != "c++" else None)
    assert (facts.compiler.path, facts.compiler.version) == ("/usr/bin/g++", "c++ 12.2.0")
    assert look().compiler.path == ""

    def fails(command: Sequence[str], _: float) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError(command[0])

    assert look(which=lambda name: f"/usr/bin/{name}", run=fails).compiler.path == ""


def test_a_library_of_another_processor_ends_its_process_and_not_the_doctor(look: Look) -> None:
    facts = look(run=answering(-4, "nothing"))
    assert facts.library.error == "loading llama.cpp ends the process: SIGILL; it was built for another processor"
    assert diagnose(facts).exit_code == 8


def test_a_model_that_ends_the_process_leaves_what_was_found_before(look: Look) -> None:
    facts = look(model="bad.gguf", run=answering(-6, line(GOOD), "aborted"))
    assert facts.library == GOOD.library
    assert facts.need == ModelNeed("bad.gguf", "reading bad.gguf ends the process: SIGABRT")


@pytest.mark.parametrize("more", ['{"library":{"version":"0.3', "{ggml: 2 devices}\n", '{"layers":24}\n'])
def test_lines_that_are_no_report_are_passed_over(look: Look, more: str) -> None:
    facts = look(model="bad.gguf", run=answering(-9, line(GOOD) + more))
    assert facts.library == GOOD.library
    assert facts.need is not None
    assert facts.need.error == "reading bad.gguf ends the process: SIGKILL"


def test_programs_may_write_in_any_encoding() -> None:
    program = "import sys; sys.stdout.buffer.write(b'Compilador 12.2, versi\\xf3n')"
    assert run_command([sys.executable, "-c", program], 30).stdout == "Compilador 12.2, versi\ufffdn"


def test_a_child_that_says_nothing_is_quoted(look: Look) -> None:
    facts = look(run=answering(1, "no json", "Traceback\nImportError: no numpy"))
    assert facts.library.error == "loading llama.cpp ends the process: ImportError: no numpy"

    def missing(command: Sequence[str], _: float) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError(command[0])

    assert "could not be tried" in look(run=missing).library.error


def test_a_child_whose_time_is_over_is_not_said_to_have_crashed(look: Look) -> None:
    def slow(said: bytes | str | None) -> Callable[..., subprocess.CompletedProcess[str]]:
        def run(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
            raise subprocess.TimeoutExpired(command, seconds, output=said)

        return run

    for said in (line(GOOD).encode(), line(GOOD)):  # bytes where Python reads pipes by itself
        facts = look(model="far.gguf", run=slow(said))
        assert facts.library == GOOD.library
        assert facts.need == ModelNeed("far.gguf", "reading far.gguf took longer than 120 s", is_too_slow=True)
        (problem,) = diagnose(facts).problems
        assert "on a disk of this machine" in problem.cure
        assert problem.exit_code == 3
    facts = look(run=slow(None))
    assert facts.library == LibraryFacts(error="loading llama.cpp took longer than 120 s", is_too_slow=True)
    (problem,) = [p for p in diagnose(facts).problems if p.check == "llama.cpp"]
    assert "less busy" in problem.cure


def test_what_a_child_said_before_its_time_was_over_is_kept() -> None:
    program = "import time; print('found', flush=True); time.sleep(60)"
    with pytest.raises(subprocess.TimeoutExpired) as slow:
        run_command([sys.executable, "-c", program], 5)
    assert slow.value.stdout in {b"found\n", "found\n"}


def test_a_signal_without_a_name_ends_the_child_and_not_the_doctor(look: Look) -> None:
    assert look(run=answering(-35, "nothing")).library.error == "loading llama.cpp ends the process: SIG35"


def test_a_child_that_dies_after_its_last_word_has_said_all(look: Look) -> None:
    facts = look(run=answering(-11, line(GOOD)))
    assert (facts.library, facts.need) == (GOOD.library, None)


def test_limits_and_drivers_are_read_from_the_kernels_files(look: Look, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for path, text in {
        "proc/cpuinfo": "processor : 0\nmodel name : A Chip\nflags : fpu avx2\n\nprocessor : 1\nmodel name : A Chip\n",
        "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n",
        "proc/self/cgroup": "0::/box\n",
        "sys/fs/cgroup/box/memory.max": str(64 << 20),
        "sys/fs/cgroup/box/memory.current": "0",
        "proc/driver/nvidia/version": "NVRM version",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    facts = look()
    assert (facts.processor.name, facts.processor.flags) == ("A Chip", frozenset({"fpu", "avx2"}))
    assert (facts.memory.total_bytes, facts.memory.limited_by) == (64 << 20, "/sys/fs/cgroup/box")
    assert facts.graphics == ("NVIDIA",)
    assert facts.devices[0].free_bytes == 64 << 20


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    facts = examine(tmp_path / "file" / "cache", run=answering())
    assert facts.disk.error == f"{tmp_path / 'file'} is no folder"
    assert examine(tmp_path / "not" / "there", run=answering()).disk.error == ""
    assert examine(tmp_path / ("x" * 300) / "cache", run=answering()).disk.error.endswith("File name too long")


def test_a_folder_that_may_not_be_looked_into_is_said(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's home, for example; root, who runs these tests in a container, may look into all."""
    exists = Path.exists

    def refuses(path: Path) -> bool:
        if path == tmp_path / "cache":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuses)
    facts = look()
    assert facts.disk.error == f"{tmp_path / 'cache'}: Permission denied"
    assert diagnose(facts).exit_code == 7


def test_stores_are_looked_into(look: Look, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf")
    api.build(model, tmp_path / "store", api.plan(model, "uniform", precision="int8"), "large")
    stores = [tmp_path / "store", tmp_path / "nowhere"]
    good, missing = look(stores=stores).stores
    assert (good.n_variants, good.damage, good.error) == (1, (), "")
    assert "is no store" in missing.error
    shard = next((tmp_path / "store" / "shards").glob("*/*.gguf"))
    shard.unlink()
    (damaged,) = look(stores=stores[:1]).stores
    assert "missing, for large" in damaged.damage[0]
    (tmp_path / "store" / "store.json").chmod(0o644)
    (tmp_path / "store" / "store.json").write_text("{")
    (broken,) = look(stores=stores[:1]).stores
    assert "is not JSON" in broken.error


def test_the_real_library_passes_its_own_test() -> None:
    report = look_at_library()
    assert report.library.error == ""
    assert report.library.version == "0.3.36"
    assert "CPU" in report.library.backends
    assert report.library.features


def test_what_a_model_needs_is_what_its_smallest_plan_takes(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf")
    need = need_of(str(model))
    assert (need.file_bytes, need.n_ctx, need.error) == (model.stat().st_size, 256, "")
    plan = api.plan(model, "uniform", memory=need.smallest_bytes, context=256)
    assert plan.bytes.total == need.smallest_bytes
    assert "does not exist" in need_of(str(tmp_path / "gone.gguf")).error


def test_this_machine_in_a_child_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf")
    (tmp_path / "msgspec.py").write_text("raise SystemExit('a file of the folder that the doctor was called in')")
    monkeypatch.chdir(tmp_path)
    facts = examine(tmp_path, str(model), run=run_command)
    assert facts.library.error == ""
    assert facts.need is not None
    assert facts.need.smallest_bytes > 0
    assert all(f.status is not Status.PROBLEM for f in diagnose(facts).findings)


@pytest.mark.parametrize("dtype", ["F16", "Q8_0", "Q4_0"])
def test_what_a_store_is_said_to_take_holds_what_is_built(tmp_path: Path, dtype: str) -> None:
    model, cache = write_tiny_model(tmp_path / "m.gguf", n_embd=256, n_ff=512, dtype=dtype), tmp_path / "cache"
    need = need_of(str(model))
    store = Store.open(api.prepare(str(model), cache, n_threads=1).folder(cache))
    largest = max(variant.n_bytes for variant in store.readable_variants()[0])
    assert need.largest_bytes == pytest.approx(largest, rel=0.1)
    assert store.usage().joint_bytes <= need.store_bytes
