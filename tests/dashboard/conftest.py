"""An engine for the page: three variants, and a switch that is seen."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from lamella.batching.messages import LayerFacts, Switched, VariantFacts
from lamella.qos.live.control import VariantControl
from lamella.qos.live.hearing import RequestHearing
from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.sample import Sample
from tests.fakes.engine import FACTS, STATUS, FakeEngine
from tests.qos.profiles import MEBI, profile, variant
from tests.serving.conftest import front, run_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["front", "run_server"]

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def _variant(name: str, mib: int, kl: float, *bits: float) -> VariantFacts:
    layers = [LayerFacts(precision=f"int{bit:g}" if bit % 1 == 0 else "5 Q4_K, 2 Q6_K", bits=bit) for bit in bits]
    return VariantFacts(
        name=name, n_bytes=mib << 20, bits_per_weight=sum(bits) / len(bits), predicted_kl=kl, layers=layers
    )


VARIANTS = [
    _variant("large", 400, 0.001, 8, 8, 8, 8),
    _variant("middle", 300, 0.02, 8, 4.6, 4.6, 6),
    _variant("small", 220, 0.1, 4, 4, 4, 6),
]


class PanelEngine(FakeEngine):
    """Runs at what it was switched to."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"facts": msgspec.structs.replace(FACTS, variants=VARIANTS), "status": STATUS} | fields)

    async def switch(self, variant: str, *, recompute_cache: bool = False, saves_memory: bool = False) -> Switched:
        switched = await super().switch(variant, recompute_cache=recompute_cache, saves_memory=saves_memory)
        self.run_at(variant)
        return switched

    def run_at(self, variant: str) -> None:
        """As if it had been switched, or started anew, at a variant."""
        assert self.facts is not None
        self.facts = msgspec.structs.replace(self.facts, variant=variant)


OBJECTIVES = Objectives(
    {"chat": ClassObjectives(tpot_seconds=1.0, most_kl=0.5), "batch": ClassObjectives()}, memory_bytes=600 * MEBI
)


def steered(engine: PanelEngine, figures: dict[str, Any] | None = None, *, is_steered: bool = True) -> VariantControl:
    """A control of the panel's engine."""

    async def take() -> Sample:
        return Sample(asyncio.get_running_loop().time())

    async def seen() -> dict[str, Any]:
        return figures or {}

    def running() -> str:
        assert engine.facts is not None
        return engine.facts.variant

    control = VariantControl(RequestHearing(), running=running, switch=engine.switch, take=take, figures=seen)
    if is_steered:
        control.steer(profile(variant("large"), variant("small", 0.5, kl=0.1)), OBJECTIVES, "static:large")
    return control


def find_browser() -> str | None:
    """A Chromium: the one that LAMELLA_BROWSER names, one of the system, or (None with playwright) playwright's."""
    return os.environ.get("LAMELLA_BROWSER") or next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window.  Skips where there is none.

    Not for longer than a module: playwright's event loop runs in this thread, and others' ``asyncio.run`` would fail.
    """
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install 'lamella[browser]')"
    )
    with api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium (apt install chromium-headless-shell): {str(error).splitlines()[0]}")
        yield opened
        opened.close()
