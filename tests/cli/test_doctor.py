"""``lamella doctor``: what it shows, and its exit code."""

from __future__ import annotations

import pytest

from lamella import api
from lamella.doctor import Diagnosis
from lamella.doctor.findings import Finding, Status
from tests.cli.conftest import Run, json_of

FINE = Finding("system", Status.OK, "Python 3.11")
FULL = Finding("disk", Status.PROBLEM, "0 B are free", "free some space", 7)
SLOW = Finding("processor", Status.WARNING, "built without AVX2", "build llama.cpp")


def _found(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    monkeypatch.setattr(api, "doctor", lambda *_: Diagnosis(findings))


@pytest.mark.parametrize(
    ("findings", "code", "last"),
    [
        ((FINE,), 0, "models can run here"),
        ((FINE, SLOW), 0, "0 problems, 1 warning"),
        ((FULL, SLOW, SLOW), 7, "1 problem, 2 warnings"),
    ],
)
def test_findings_their_cures_and_how_many_there_are(
    run: Run, monkeypatch: pytest.MonkeyPatch, findings: tuple[Finding, ...], code: int, last: str
) -> None:
    _found(monkeypatch, *findings)
    found, out, _ = run("doctor")
    assert found == code
    assert out.splitlines()[-1] == last
    for finding in findings:
        assert finding.found in out
        assert not finding.cure or f"{finding.check}: {finding.cure}" in out


def test_the_same_as_a_document(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _found(monkeypatch, FINE, FULL)
    document = json_of(run("doctor", "--json"), 7)
    assert (document["ok"], document["exit_code"]) == (False, 7)
    assert [finding["status"] for finding in document["findings"]] == ["ok", "problem"]
