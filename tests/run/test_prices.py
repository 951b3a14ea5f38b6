"""Prices are the times of the layout that the engine would choose."""

from lamella.llama.kernels import KernelTimes
from lamella.planning.constraints import TypePrice
from lamella.run.prices import prices_of

TIMES = {
    "F16": KernelTimes(8.0, 6.0),
    "Q4_0": KernelTimes(4.0, 3.0, 2.0, 1.0, has_repacked=True),
    "Q4_K": KernelTimes(4.0, 1.0, 2.0, 3.0, has_repacked=True),
    "Q8_0": KernelTimes(4.0, 3.0, 5.0, 4.0, has_repacked=True),
}


def test_the_faster_layout_of_each_phase_is_priced() -> None:
    assert prices_of(TIMES) == {
        "F16": TypePrice(8.0, 6.0, 8.0, 6.0),
        "Q4_0": TypePrice(2.0, 1.0, 4.0, 3.0),
        "Q4_K": TypePrice(2.0, 1.0, 4.0, 1.0),  # tokens from the copy, prompts from the mapped weights
        "Q8_0": TypePrice(4.0, 3.0, 4.0, 3.0),
    }


def test_a_policy_may_forbid_copies() -> None:
    assert prices_of(TIMES, "mapped")["Q4_0"] == TypePrice(4.0, 3.0, 4.0, 3.0)
