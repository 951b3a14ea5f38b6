"""Traces: made by chance with a seed, read from files, refused with the line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest
from lamella.qos.traces.arrivals import Arrival, Trace
from lamella.qos.traces.files import read_trace, write_trace
from lamella.qos.traces.generators import Lengths, Load, bursts, day, poisson
from lamella.qos.traces.named import named_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,0
2023-11-16 18:15:47.6805900,879,55
"""
GOOD = '{"seconds": 0.5, "n_prompt": 3, "n_generated": 2, "class": "batch"}'


def share_within(trace: Trace, start: float, end: float, every: float) -> float:
    return sum(start <= a.seconds % every < end for a in trace.arrivals) / len(trace.arrivals)


def test_poisson_has_its_rate_and_its_spread() -> None:
    trace = poisson(Load(rate=5.0, seconds=2000.0), seed=3)
    assert len(trace.arrivals) == pytest.approx(10_000, rel=0.04)
    counts = [0] * 2000
    for arrival in trace.arrivals:
        counts[int(arrival.seconds)] += 1
    mean = sum(counts) / len(counts)
    assert sum((c - mean) ** 2 for c in counts) / len(counts) == pytest.approx(
        mean, rel=0.1
    )  # Poisson: variance = mean


def test_bursts_come_when_they_should() -> None:
    trace = bursts(Load(rate=1.0, seconds=3000.0), peak=10.0, every=60.0, length=15.0)
    expected = 150 / (150 + 45)
    assert share_within(trace, 22.5, 37.5, 60.0) == pytest.approx(expected, abs=0.03)


def test_a_day_is_quiet_at_night() -> None:
    trace = day(Load(rate=3.0, seconds=1000.0), swing=1.0, period=1000.0)
    assert share_within(trace, 250, 750, 1000.0) == pytest.approx(0.5 + 1 / 3.14159, abs=0.03)


def test_equal_seeds_give_equal_traces_and_others_do_not() -> None:
    load = Load(rate=2.0, seconds=50.0)
    assert poisson(load, 1) == poisson(load, 1)
    assert poisson(load, 1).arrivals != poisson(load, 2).arrivals


def test_classes_have_their_shares() -> None:
    classes = poisson(Load(rate=20.0, seconds=200.0, classes={"interactive": 3, "batch": 1})).classes()
    assert classes["batch"] / sum(classes.values()) == pytest.approx(0.25, abs=0.02)


@given(st.integers(1, 500), st.floats(0, 2), st.integers(0, 1000))
def test_lengths_stay_within_their_bounds(median: int, spread: float, seed: int) -> None:
    trace = poisson(Load(1.0, 20.0, prompt=Lengths(median, spread, 1, 500)), seed)
    assert all(1 <= a.n_prompt <= 500 for a in trace.arrivals)


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    trace = poisson(Load(rate=2.0, seconds=30.0, classes={"a": 1, "b\u2028\x85\n": 1}))
    path = tmp_path / "t.jsonl"
    path.write_bytes(write_trace(trace))
    assert read_trace(path).arrivals == trace.arrivals


def test_the_azure_form(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    found = read_trace(path, "interactive").arrivals
    assert [(a.n_prompt, a.n_generated) for a in found] == [(374, 44), (879, 55), (396, 1)]
    assert [a.seconds for a in found] == pytest.approx([0.0, 1.0, 4.314579])


def test_the_azure_form_of_2024(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\r\n2024-05-10 00:00:00.009930+00:00,2162,5\r\n")
    assert read_trace(path).arrivals == (Arrival(0.0, 2162, 5),)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{GOOD}\nnonsense\n", 2),
        (f'{GOOD}\n\n{{"seconds": 0.4, "n_prompt": 3, "n_generated": 2}}', 3),
        ('{"seconds": -1, "n_prompt": 3, "n_generated": 2}', 1),
        ('{"seconds": 1, "n_prompt": 0, "n_generated": 2}', 1),
        ('{"seconds": 1, "n_prompt": 1}', 1),
        ('{"seconds": 1, "n_prompt": 1, "n_generated": 1, "colour": 1}', 1),
        (AZURE + "yesterday,1,1\n", 5),
        (AZURE + "2023-11-16 18:15:46,1\n", 5),
        (AZURE + "2023-11-16 18:15:46,0,1\n", 5),
        ("TIMESTAMP,ContextTokens\n", 1),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=f"line {line}:"):
        read_trace(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00"])
def test_files_without_requests_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(InvalidRequest, match="bad"):
        read_trace(tmp_path / "bad")


def test_names_make_traces() -> None:
    trace = named_trace("bursts:rate=1,peak=8,every=20,length=5,seconds=100,seed=4,batch=0.5,generated=30")
    assert trace.seconds < 100
    assert set(trace.classes()) == {"batch", "interactive"}
    assert named_trace("poisson:rate=2,seconds=10") == named_trace("poisson:seconds=10,rate=2")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("poisson:rate", "NAME=NUMBER"),
        ("poisson:rate=0", "above 0"),
        ("poisson:seed=nan", "'seed=nan' is not NAME=NUMBER"),
        ("poisson:prompt=inf", "'prompt=inf' is not NAME=NUMBER"),
        ("poisson:spread=nan", "'spread=nan' is not NAME=NUMBER"),
        ("bursts:rate=1", "peak=5"),
        ("bursts:rate=1,peak=0.5", "peak"),
        ("day:swing=2", "swing"),
        ("weekly:rate=1", "poisson:..., bursts:..., day:..."),
        ("no-such-file", "cannot be read"),
        ("poisson:prompt=0", "median"),
        ("poisson:rate=1e9", r"1e\+09 requests/s for 600 s are about 6e\+11 requests; a trace has at most 5,000,000"),
        ("bursts:rate=1,peak=1e6", "about 6e.08 requests"),
        ("day:seconds=1e9", "about 1.8e.09 requests"),
    ],
)
def test_bad_names_are_refused(name: str, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        named_trace(name)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match="pipe cannot be read: it is a named pipe"):
        read_trace(tmp_path / "pipe")


def test_a_trace_can_be_faster_and_shorter() -> None:
    trace = Trace("t", (Arrival(0.0, 1, 1), Arrival(10.0, 1, 1)))
    assert trace.faster(2.0).seconds == 5.0
    assert trace.until(10.0).arrivals == (Arrival(0.0, 1, 1),)
    with pytest.raises(InvalidRequest):
        trace.faster(0.0)
