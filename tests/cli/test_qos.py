"""``lamella profile`` and ``lamella simulate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamella.qos.profiles.documents import to_json
from tests.cli.conftest import Run
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
    assert "ms are promised" in out


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
        (("--slowdown", "0"), "above 0"),
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
    assert (code, "lamella profile" in err) == (2, True)
    code, out, err = run("profile", profiled_store, "--repeats", "1", *engine)
    assert code == 0, err
    assert all(word in out for word in ("int8", "int4", "ms/token"))
    trace = "poisson:rate=1,seconds=60,prompt=8,generated=4"
    code, out, err = run("simulate", profiled_store, "--trace", trace, "--policy", "static:int4", *engine)
    assert code == 0, err
    assert "static:int4" in out
