"""A server whose variant only hands change: their switches are kept, and nobody looks at the machine."""

from __future__ import annotations

from typing import Any

from lamella.qos.live.control import VariantControl
from lamella.qos.live.hearing import RequestHearing
from lamella.qos.policies.sample import Sample
from lamella.serving.engine_client import EngineClient


def by_hand(client: EngineClient) -> VariantControl:
    """The control of such a server."""

    async def nothing_seen() -> Sample:
        return Sample(0.0)

    async def no_figures() -> dict[str, Any]:
        return {}

    return VariantControl(
        RequestHearing(), running=lambda: running_variant(client), switch=client.switch,
        take=nothing_seen, figures=no_figures,
    )  # fmt: skip


def running_variant(client: EngineClient) -> str:
    """The variant that runs, or that ran last; "" before any did."""
    return client.facts.variant if client.facts else ""
