"""``lamella devices``: what can compute here, and with how much memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from lamella import api
from lamella.cli.output import JsonFlag, print_json, stdout, table
from lamella.config import Config
from lamella.core.units import format_bytes
from lamella.llama.kernels import KernelTimes
from lamella.llama.rpc import connect
from lamella.run.layouts import Layout, choose

TIMED_TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "IQ4_NL", "Q3_K", "Q2_K")


def devices(
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Also time matrix products of each ggml type, mapped and repacked.")
    ] = False,
    rpc: Annotated[
        list[str] | None,
        typer.Option(
            help="Also those of an rpc-server of llama.cpp on this machine; may be repeated.", metavar="HOST:PORT"
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """List ggml's devices and mark the one that plans are made for.

    That is the one with most free memory, or the one that LAMELLA_DEVICE names.  The CPU's memory honours the limits of
    its control group.
    """
    config = Config.from_environment(os.environ)
    for endpoint in rpc or ():
        connect(endpoint)
    found, chosen = api.devices(config.device)
    times = api.kernel_times(TIMED_TYPES, config.n_threads, cache_folder=config.cache_folder) if kernels else {}
    layouts = choose("auto", times)
    if json:
        document: dict[str, Any] = {"devices": found, "chosen": chosen.name}
        if kernels:
            document["kernels"] = {n: {"ns_per_weight": t, "layout": layouts[n]} for n, t in times.items()}
        print_json(document)
        return
    shown = table("", "device", "kind", "backend", ">free", ">total", "limited by", "hardware")
    for device in found:
        shown.add_row(
            "→" if device.name == chosen.name else "",
            device.name,
            device.kind,
            device.backend,
            format_bytes(device.free_bytes),
            format_bytes(device.total_bytes),
            device.limited_by,
            device.description,
        )
    stdout.print(shown)
    if kernels:
        show_kernels(times, layouts)


def show_kernels(times: Mapping[str, KernelTimes], layouts: Mapping[str, Layout]) -> None:
    """Picoseconds for each weight and token, and the layout that ``auto`` takes."""
    shown = table(
        "type", ">token mapped", ">repacked", ">prompt mapped", ">repacked", "layout", title="\nps per weight"
    )
    for name, t in times.items():
        repacked = [f"{1e3 * ns:.1f}" if t.has_repacked else "" for ns in (t.repacked_token, t.repacked_prompt)]
        mapped = [f"{1e3 * ns:.1f}" for ns in (t.mapped_token, t.mapped_prompt)]
        shown.add_row(name, mapped[0], repacked[0], mapped[1], repacked[1], _layout_words(layouts[name]))
    stdout.print(shown)


def _layout_words(layout: Layout) -> str:
    if not layout.repack:
        return "mapped"
    return "repacked for tokens, mapped for prompts" if layout.prompt_from_mapped else "repacked"
