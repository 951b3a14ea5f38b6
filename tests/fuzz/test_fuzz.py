"""Each parser of foreign bytes, for a moment, on mutations that are the same in every run; longer: ``scripts/fuzz``."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import Escaped, Harness, Hung, try_one
from tests.fuzz.mutating import JSON, LONGEST, Form, mutated
from tests.fuzz.registry import HARNESSES
from tests.fuzz.words import dictionary

MOST_GROWTH_BYTES = 512 << 20


@pytest.mark.parametrize("name", HARNESSES)
def test_its_seeds_are_read_without_complaint(name: str) -> None:
    for seed in HARNESSES[name].seeds():
        with tempfile.TemporaryDirectory() as folder:
            assert try_one(HARNESSES[name], seed, Path(folder)), seed[:200]


@pytest.mark.parametrize("name", HARNESSES)
def test_mutations_are_read_or_refused(name: str) -> None:
    harness, before = HARNESSES[name], _peak_bytes()

    @given(st.sampled_from(tuple(harness.seeds())), st.randoms(use_true_random=False))
    @settings(
        max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def tries(seed: bytes, chance: Random) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try_one(harness, mutated(seed, harness.form, chance, harness.words), Path(folder))

    tries()
    assert _peak_bytes() - before < MOST_GROWTH_BYTES


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- the fuzzing itself ----------------------------------------------------------------------------------------------


def _harness(read: object) -> Harness:
    return Harness("test", (), lambda: [b""], read)  # type: ignore[arg-type]


def test_a_write_outside_the_folder_is_seen(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    assert try_one(_harness(lambda _data, folder: (folder / "x").write_text("")), b"", inside)
    (inside / "link").symlink_to(outside)
    for path in (outside, inside / ".." / "outside", inside / "link"):
        with pytest.raises(Escaped):
            try_one(_harness(lambda _data, _folder, path=path: path.write_text("")), b"", inside)
    with pytest.raises(Escaped):
        try_one(_harness(lambda _data, folder: (folder / "x").rename(outside)), b"", inside)
    assert not outside.exists()


def test_an_input_without_end_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.harness.MOST_SECONDS", 0.05)

    def for_ever(_data: bytes, _folder: Path) -> None:
        while True:
            pass

    with pytest.raises(Hung):
        try_one(_harness(for_ever), b"", tmp_path)


def test_an_error_that_is_none_of_ours_is_seen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not ours"):
        try_one(_harness(lambda *_: (_ for _ in ()).throw(ValueError("not ours"))), b"", tmp_path)


def test_the_words_of_a_parser_are_its_fields_and_its_strings() -> None:
    words = HARNESSES["cluster-document"].words
    assert {"memory_bytes", "seconds_limit", "lamella.cluster"} <= set(words)
    assert not any(" " in word for word in words)
    assert all(dictionary((word,)).startswith('"') for word in words)
    assert dictionary(('a"b\\',)) == '"a\\"b\\\\"\n'


def test_a_field_that_no_seed_has_is_put_in_by_its_name() -> None:
    words = ("wanted",)
    made = {mutated(b'{"a": 1}', JSON, Random(seed), words) for seed in range(300)}
    assert any(isinstance(tree, dict) and "wanted" in tree for tree in map(_tree_or_none, made))


def _tree_or_none(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def test_changes_upon_changes_stay_small() -> None:
    """This one made a list fifty times as long, again and again: 12 MB of it, other chances gigabytes."""
    sizes: list[int] = []

    def noted(data: bytes) -> object:
        sizes.append(len(data))
        return JSON.take_apart(data)

    mutated(b"[1]", Form(noted, JSON.put_together), Random(44647))
    assert len(sizes) > 1
    assert max(sizes) <= LONGEST
