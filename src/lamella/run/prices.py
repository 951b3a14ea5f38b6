"""What a token costs in each ggml type on this machine: the kernel times of the layout that the engine would choose.

prices_of(table.times(["Q4_K", "Q8_0"]))["Q4_K"].token  # nanoseconds a weight
"""

from __future__ import annotations

from collections.abc import Mapping

from lamella.llama.kernels import KernelTimes
from lamella.planning.constraints import TypePrice
from lamella.run.layouts import LayoutPolicy, choose


def prices_of(times: Mapping[str, KernelTimes], policy: LayoutPolicy = "auto") -> dict[str, TypePrice]:
    """Prices by type name, for plans that are asked for by speed (``planning.knapsack``)."""
    layouts = choose(policy, times)
    return {
        name: TypePrice(
            token=t.repacked_token if layouts[name].repack else t.mapped_token,
            prompt=t.repacked_prompt
            if layouts[name].repack and not layouts[name].prompt_from_mapped
            else t.mapped_prompt,
            mapped_token=t.mapped_token,
            mapped_prompt=t.mapped_prompt,
        )
        for name, t in times.items()
    }
