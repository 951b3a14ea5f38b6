"""``lamella profile`` and ``lamella simulate``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lamella import api
from lamella.batching.settings import EngineSettings
from lamella.cli import adapting
from lamella.qos.profiles.documents import to_json
from lamella.qos.profiling.shape import shape_of
from lamella.resources.machine import CpuMemory
from tests.cli.conftest import Run
from tests.fakes.tiny_model import write_tiny_model
from tests.qos.profiles import ladder

BURSTS = "bursts:rate=0.6,peak=3,every=60,length=15,seconds=120,seed=1"


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "p.json"
    path.write_bytes(to_json(ladder(4)))
    return path


def test_policies_are_compared_on_one_trace(run: Run, profile: Path) -> None:
    code, out, err = run(
        "simulate", profile, "--trace", BURSTS, "--class", "interactive:tpot_p95_ms=45", "--changes",
        "--policy", "static", "--policy", "predictive", "--policy", "oracle",
    )  # fmt: skip
    assert code == 0, err
    assert all(name in out for name in ("static:v0", "predictive", "oracle"))
    assert "of the running requests of interactive would take more than the 45 ms a token" in " ".join(out.split())


def test_one_document_for_machines(run: Run, profile: Path) -> None:
    code, out, err = run("simulate", profile, "--trace", BURSTS, "--class", "interactive:tpot_p95_ms=45", "--json")
    assert code == 0, err
    document = json.loads(out)
    (outcome,) = document["outcomes"]
    assert outcome["policy"] == "predictive"
    assert outcome["attainment"] > 0.9
    assert document["trace"]["requests"] == outcome["classes"]["interactive"]["n_requests"]


def test_a_trace_is_written_and_read_again(run: Run, profile: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    first = run("simulate", profile, "--trace", BURSTS, "--faster", "2", "--write", path, "--json")
    second = run("simulate", profile, "--trace", path, "--json")
    outcomes = [json.loads(out)["outcomes"][0] for _, out, _ in (first, second)]
    assert outcomes[0]["share_at"] == outcomes[1]["share_at"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "interactive:tpot_p95_ms=1"), "the nearest is"),
        (("--class", "batch"), "'interactive'"),
        (("--policy", "clever"), "predictive"),
        (("--policy", "static:v9"), "v0, v1"),
        (("--slowdown", "0"), "'--slowdown': Input should be greater than"),
        (("--slowdown", "inf"), "'--slowdown': Input should be less than"),
        (("--scatter", "-0.1"), "--scatter must be at least 0, not -0.1"),
        (("--scatter", "nan"), "'--scatter': Input should be less than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, profile: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = run("simulate", profile, "--trace", BURSTS, *arguments)
    assert code != 0
    assert message in err


def test_objectives_come_from_one_place(run: Run, profile: Path, tmp_path: Path) -> None:
    path = tmp_path / "o.toml"
    path.write_text("[class.interactive]\ntpot_p95_ms = 45\n")
    assert run("simulate", profile, "--trace", BURSTS, "--objectives", path)[0] == 0
    code, _, err = run("simulate", profile, "--trace", BURSTS, "--objectives", path, "--memory", "1GiB")
    assert (code, "--objectives says everything" in err) == (2, True)


def test_a_store_is_profiled_and_then_simulated(run: Run, profiled_store: Path) -> None:
    engine = ("--context", "128", "--sequences", "2", "--layout", "mapped")
    code, _, err = run("simulate", profiled_store, "--trace", "poisson:rate=1", *engine)
    assert code == 2
    assert f"lamella profile {profiled_store} --context 128 --sequences 2 --layout mapped" in " ".join(err.split())
    code, out, err = run("profile", profiled_store, "--repeats", "1", *engine)
    assert code == 0, err
    assert all(word in out for word in ("int8", "int4", "ms/token"))
    trace = "poisson:rate=1,seconds=60,prompt=8,generated=4"
    code, out, err = run("simulate", profiled_store, "--trace", trace, "--policy", "static:int4", *engine)
    assert code == 0, err
    assert "static:int4" in out


def test_an_engine_under_a_ceiling_is_measured_with_its_cells(run: Run, profiled_store: Path) -> None:
    engine = ("--context", "128", "--sequences", "2", "--layout", "mapped")
    asked = ("simulate", profiled_store, "--trace", "poisson:rate=1,seconds=60", "--memory", "2GiB", *engine)
    code, _, err = run(*asked)
    assert (code, "--cells 256" in " ".join(err.split())) == (2, True)
    assert run("profile", profiled_store, "--quick", "--cells", "256", *engine)[0] == 0
    code, _, err = run(*asked)
    assert code == 0, err


SMALL = ("--context", "128", "--sequences", "2", "--layout", "mapped", "--port", "0")


@pytest.fixture(scope="module")
def ladder_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the names of ``ladder(4)``; what is in them plays no part."""
    folder = tmp_path_factory.mktemp("ladder")
    model = write_tiny_model(folder / "tiny.gguf", n_layers=1)
    plan = api.plan(str(model), "uniform", precision="int8", context=128)
    for i in range(4):
        api.build(str(model), folder / "store", plan, f"v{i}")
    return folder / "store"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--token-p95", "1"), "the nearest is"),
        (("--quality-floor", "0.00001", "--ttft-p95", "0.1"), "the nearest is"),
        (("--class", "a:speed=3"), "tpot_p95_ms"),
        (("--token-p95", "5000", "--policy", "oracle"), "predictive"),
        (("--token-p95", "5000", "--policy", "static:v9"), "v0, v1"),
        (("--token-p95", "5000", "--hold", "-1"), "--hold must be at least 0, not -1"),
        (("--hold", "nan"), "--hold must be at most 1000000000, not nan"),
        (("--power", "0"), "power must be a number of W above 0"),
        (("--longest-step", "0"), "a number of seconds above 0"),
        (("--memory", "1GiB", "--device", "RPC0"), "cannot be kept together with a device"),
        (("--reproducible", "--cells", "256"), "leave --cells 256 away"),
        (("--token-p95", "5000", "--cells", "200"), "n_cells 0, and this one has n_cells 200"),
        (("--objectives", "o.toml", "--token-p95", "80"), "--objectives says everything"),
    ],
)
def test_what_cannot_be_is_refused_before_a_server_starts(
    run: Run, ladder_store: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    shape = shape_of(EngineSettings(store="", n_ctx=128, n_sequences=2, layout="mapped"))
    path = tmp_path / "p.json"
    path.write_bytes(to_json(replace(ladder(4), engine=shape)))
    code, _, err = run("serve", ladder_store, "--profile", path, *arguments, *SMALL)
    assert code != 0
    assert message in err


def test_a_profile_that_lacks_a_variant_steers_nobody(run: Run, ladder_store: Path, tmp_path: Path) -> None:
    """It would not know what to do from where it starts."""
    shape = shape_of(EngineSettings(store="", n_ctx=128, n_sequences=2, layout="mapped"))
    path = tmp_path / "p.json"
    path.write_bytes(to_json(replace(ladder(3), engine=shape)))
    code, _, err = run("serve", ladder_store, "--profile", path, "--token-p95", "80", *SMALL)
    assert (code, "lacks variants that are served: v3; it has: v0, v1, v2" in err) == (2, True)


def test_a_profile_of_another_engine_steers_nobody(run: Run, profiled_store: Path, profile: Path) -> None:
    code, _, err = run("serve", profiled_store, "--profile", profile, "--token-p95", "80", *SMALL)
    assert (code, "is of an engine with" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "n_warm"),
    [
        (("--token-p95", "5000"), 4),
        (("--token-p95", "5000", "--warm", "3"), 3),
        (("--token-p95", "5000", "--memory", "2600MiB"), 3),  # half of it holds three
        ((), 2),  # nobody changes the variant by himself
    ],
)
def test_a_policy_finds_its_variants_in_memory(
    run: Run, ladder_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], n_warm: int,
) -> None:  # fmt: skip
    started: list[EngineSettings] = []

    async def serve(engine: EngineSettings, *_: object, **__: object) -> None:
        started.append(engine)

    monkeypatch.setattr(api, "serve", serve)
    monkeypatch.setattr(adapting, "cpu_memory", lambda: CpuMemory(8 << 30, 6 << 30))
    path = tmp_path / "p.json"
    memory_bytes = 1 if "--memory" in arguments else 0
    shape = shape_of(EngineSettings(store="", n_ctx=128, n_sequences=2, layout="mapped", memory_bytes=memory_bytes))
    path.write_bytes(to_json(replace(ladder(4), engine=shape)))
    profile = ("--profile", path) if "--token-p95" in arguments else ()
    code, _, err = run("serve", ladder_store, *profile, *arguments, *SMALL)
    assert code == 0, err
    assert [engine.n_warm for engine in started] == [n_warm]


def test_a_trace_is_not_written_where_there_is_no_profile(run: Run, tmp_path: Path) -> None:
    written = tmp_path / "t.csv"
    code, _, _ = run("simulate", tmp_path / "none.json", "--trace", BURSTS, "--write", written)
    assert (code, written.exists()) == (5, False)


def test_a_replay_of_nothing_is_drawn(run: Run, profile: Path, tmp_path: Path) -> None:
    asked = ("--trace", BURSTS, "--seconds", "0", "--plot", tmp_path / "replay.svg")
    code, _, err = run("simulate", profile, *asked)
    assert code == 0, err


def test_a_replay_is_drawn(run: Run, profile: Path, tmp_path: Path) -> None:
    path = tmp_path / "replay.svg"
    objectives = ("--class", "interactive:tpot_p95_ms=45")
    code, _, err = run("simulate", profile, "--trace", BURSTS, *objectives, "--plot", path)
    assert code == 0, err
    assert path.read_text().count("<use") > 100  # a dot for each request
    code, _, err = run("simulate", profile, "--trace", BURSTS, *objectives, "--plot", tmp_path / "replay.txt")
    assert (code, ".svg" in err) == (2, True)
