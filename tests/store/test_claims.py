"""One builder at a time makes a shard; a builder that died stands in nobody's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lamella.store.claims import Claims
from lamella.store.layout import Layout

RECIPE, OTHER = "ab" * 32, "cd" * 32


def _take_and_die(root: Path) -> str:
    """What a process says that claims the recipe, and is gone before it releases it."""
    program = (
        "import os, sys; from pathlib import Path; from lamella.store.claims import Claims; "
        "from lamella.store.layout import Layout; "
        f"print(Claims(Layout(Path(sys.argv[1]))).take({RECIPE!r}), flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_claimed_recipe_is_nobody_elses_until_it_is_released(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with Claims(layout) as mine, Claims(layout) as others:
        assert mine.take(RECIPE)
        assert not others.take(RECIPE)
        assert others.take(OTHER)
        assert _take_and_die(tmp_path) == "False"
        mine.release(RECIPE)
        assert not layout.claim(RECIPE).exists()
        assert others.take(RECIPE)
        assert not mine.take(RECIPE)


def test_all_claims_end_with_their_builder(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with Claims(layout) as others:
        with Claims(layout) as mine:
            assert mine.take(RECIPE)
            assert mine.take(OTHER)
        assert others.take(RECIPE)
        assert others.take(OTHER)
    assert not list(layout.incoming.iterdir())


def test_a_claim_of_a_builder_that_died_can_be_taken(tmp_path: Path) -> None:
    assert _take_and_die(tmp_path) == "True"
    layout = Layout(tmp_path)
    assert layout.claim(RECIPE).exists()
    with Claims(layout) as claims:
        assert claims.take(RECIPE)


def test_a_claim_that_somebody_removed_can_be_released(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with Claims(layout) as claims:
        assert claims.take(RECIPE)
        layout.claim(RECIPE).unlink()
        claims.release(RECIPE)
        assert claims.take(RECIPE)
