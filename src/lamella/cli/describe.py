"""One-line descriptions of what an engine did."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lamella.core.units import format_bytes, format_seconds
from lamella.run.generation import GenerationStats
from lamella.run.prepared import SwitchReport


def describe_switch(report: SwitchReport) -> str:
    """One line about a switch."""
    ready = f", ready after {format_seconds(report.prepare_seconds)}" if report.prepare_seconds else ""
    copies = f", {format_bytes(report.repacked_bytes)} of repacked copies" if report.repacked_bytes else ""
    return (
        f"{report.before} -> {report.after}: {report.n_shards} shards, {report.n_weights} weights "
        f"in {format_seconds(report.switch_seconds)}{ready}{copies}"
    )


def describe_stats(stats: GenerationStats, variant: str) -> str:
    """One line about a generation."""
    reused = f" ({stats.n_reused} from the cache)" if stats.n_reused else ""
    return (
        f"[{variant}: prompt of {stats.n_prompt} tokens{reused} in {format_seconds(stats.prompt_seconds)}, "
        f"{stats.n_generated} tokens at {stats.tokens_per_second:.1f}/s]"
    )


def describe_times(token_ms: Sequence[float], at: int) -> str:
    """One line about the tokens around a switch that came before token ``at``."""
    before = statistics.median(token_ms[1:at] or token_ms[:1])
    after = statistics.median(token_ms[at + 1 :] or token_ms[at:])
    return f"[ms per token: {before:.1f} before the switch, {token_ms[at]:.1f} at it, {after:.1f} after (medians)]"
