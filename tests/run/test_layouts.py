"""The choice of layouts is pure: the faster one, unless it is not worth its memory."""

from __future__ import annotations

import pytest

from lamella.core.errors import InvalidRequest
from lamella.llama.kernels import KernelTimes
from lamella.run.layouts import Layout, check_policy, choose

BOTH_FASTER = KernelTimes(1.0, 1.0, repacked_token=0.6, repacked_prompt=0.7, has_repacked=True)
TOKENS_FASTER = KernelTimes(1.0, 0.7, repacked_token=0.8, repacked_prompt=1.0, has_repacked=True)
BOTH_SLOWER = KernelTimes(0.7, 0.7, repacked_token=1.0, repacked_prompt=1.0, has_repacked=True)
HARDLY_FASTER = KernelTimes(1.0, 1.0, repacked_token=0.98, repacked_prompt=0.98, has_repacked=True)
PROMPTS_FASTER = KernelTimes(1.0, 1.0, repacked_token=1.0, repacked_prompt=0.5, has_repacked=True)
NONE = KernelTimes(1.0, 1.0)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (BOTH_FASTER, Layout(repack=True)),
        (TOKENS_FASTER, Layout(repack=True, prompt_from_mapped=True)),
        (PROMPTS_FASTER, Layout(repack=True)),
        (BOTH_SLOWER, Layout(repack=False, prompt_from_mapped=True)),
        (HARDLY_FASTER, Layout()),
        (NONE, Layout()),
    ],
)
def test_auto_takes_what_was_measured_faster(times: KernelTimes, expected: Layout) -> None:
    assert choose("auto", {"Q4_0": times})["Q4_0"] == expected


def test_mapped_never_copies_and_repacked_copies_what_it_can() -> None:
    times = {"Q4_0": BOTH_FASTER, "Q8_0": NONE, "Q4_K": BOTH_SLOWER}
    assert not any(layout.repack for layout in choose("mapped", times).values())
    assert {n: layout.repack for n, layout in choose("repacked", times).items()} == {
        "Q4_0": True,
        "Q8_0": False,
        "Q4_K": True,
    }


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="auto, mapped, repacked"):
        check_policy("fast")
