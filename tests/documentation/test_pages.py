"""The generated pages are what they are made of, and the Python page names all that is public."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import lamella
from benchmarks.claims import CLAIMS
from benchmarks.common import RESULTS
from benchmarks.lines import compared, promised
from benchmarks.page import LOSSES, benchmarks_page, read_records
from benchmarks.readers import lines_of
from lamella.cli import main
from scripts.pages import DOCS, external_links, help_texts, stale_pages
from scripts.site_hooks import for_the_site

BY_HAND = {"tuned-rounding-smollm2", "tunnel"}
"""Records that no claim of ``make benchmarks`` writes: of a prototype, and of a store that was made by hand."""


def test_no_generated_page_is_stale() -> None:
    assert stale_pages() == [], "python -m scripts.pages writes them"


@pytest.mark.parametrize("command", ["", "serve", "cluster plan", "store trim", "lm-eval"])
def test_the_reference_says_what_help_says(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letter for letter; lines are broken where the terminal ends."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["lamella"])
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)
    assert main([*command.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    written = dict(help_texts())[f"lamella {command}".strip()]
    assert "".join(printed.split()) == "".join(written.split())
    assert f"\n{written}\n" in (DOCS / "commands.md").read_text()


def test_every_command_is_in_the_reference() -> None:
    names = [name for name, _ in help_texts()]
    assert len(names) == len(set(names)) > 40
    assert {"lamella", "lamella store", "lamella store gc", "lamella cluster nodes", "lamella node"} <= set(names)


def test_the_python_page_has_every_public_name_and_no_other() -> None:
    named = re.findall(r"^::: lamella\.\S*?(\w+)$", (DOCS / "python.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(set(lamella.__all__) - {"__version__"})


def test_every_record_has_figures_on_the_page() -> None:
    page = benchmarks_page()
    for record in read_records():
        assert record.lines, record.name
        assert f"## {record.name}\n" in page


def test_losses_stand_first_and_none_is_left_out() -> None:
    lost, *sections = benchmarks_page().partition("## What is worse")[2].split("\n## ")
    for record in read_records():
        section = next(text for text in sections if text.startswith(f"{record.name}\n"))
        n_lost = sum(line.verdict in LOSSES for line in record.lines)
        assert lost.count(f"| [{record.name}](") == n_lost
        assert sum(section.count(f"| {word}") for word in LOSSES) == n_lost


@pytest.mark.parametrize(
    ("ours", "theirs", "more_is_better", "verdict"),
    [
        (1.0, 2.0, False, "better"),
        (2.0, 1.0, False, "worse"),
        (2.0, 1.0, True, "better"),
        (1.0, 2.0, True, "worse"),
        (1.02, 1.0, False, "alike"),
        (0.96, 1.0, True, "worse"),
    ],
)
def test_who_is_better(ours: float, theirs: float, more_is_better: bool, verdict: str) -> None:
    line = compared("what", ours, theirs, "s", rival="theirs", more_is_better=more_is_better)
    assert line.verdict == verdict


def test_a_promise_that_is_not_kept_says_so() -> None:
    assert promised("what", "2 of 3", False, "all").verdict == "does not hold"


def test_records_of_clusters_are_read() -> None:
    plans = [
        {"planner": planner, "predicted_ms": predicted, "measured_ms": {"median": measured}}
        for planner, predicted, measured in (("joint", 60.0, 70.0), ("by-memory", 70.0, 100.0))
    ]
    lines = lines_of("cluster-qwen-0.5b", {"plans": plans})
    assert [(line.verdict, line.ratio) for line in lines] == [("better", 0.7), ("", None), ("", None)]
    kills = {"kills": 20, "incomplete": [3], "requests": 90, "recovery_seconds": {"median": 4.0, "max": 9.0}}
    assert lines_of("node_kills-kill", kills)[0].verdict == "does not hold"


def test_a_record_of_an_unknown_kind_is_shown_by_its_numbers() -> None:
    assert [line.ours for line in lines_of("moon", {"phase": 0.25, "names": ["new"], "load_average": 2})] == ["0.25"]


def test_every_claim_has_a_benchmark_and_every_record_a_claim() -> None:
    names = [one.name for one in CLAIMS]
    assert len(names) == len(set(names))
    for one in CLAIMS:
        assert (RESULTS.parent / f"{one.command[0]}.py").exists(), one.name
        assert one.minutes > 0
    assert {path.stem for path in RESULTS.glob("*.json")} <= {*names, *BY_HAND}


def test_claims_write_the_records_that_they_are_named_after() -> None:
    """The command in a record is one of the benchmark that its claim runs."""
    modules = {one.name: one.command[0] for one in CLAIMS}
    for path in RESULTS.glob("*.json"):
        document = json.loads(path.read_text())
        if path.stem in modules:
            assert f"{modules[path.stem]}.py" in document["command"]
            assert document["benchmark"] == path.stem


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("see docs/qos.md, and", "see [qos.md](qos.md), and"),
        ("`docs/qos.md`", "`docs/qos.md`"),
        ("```\ndocs/qos.md\n```", "```\ndocs/qos.md\n```"),
        ("[r](../benchmarks/results/switch.json)", "[r](records/switch.json)"),
    ],
)
def test_pages_link_on_the_site_as_in_the_repository(written: str, shown: str) -> None:
    assert for_the_site(written, "page.md") == shown


def test_a_page_in_a_folder_links_upwards() -> None:
    assert for_the_site("docs/qos.md", "how-to/gpu.md") == "[qos.md](../qos.md)"


def test_links_of_readers_own_machines_are_not_external() -> None:
    text = (
        "<https://example.org/a>, `https://example.org/b` and http://127.0.0.1:8080/v1\n```\nhttps://example.org/c\n```"
    )
    assert external_links(text) == {"https://example.org/a"}


def test_readme_links_lead_to_files() -> None:
    root = Path(__file__).parents[2]
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (root / "README.md").read_text())
    assert [target for target in targets if not (root / target).exists()] == []
