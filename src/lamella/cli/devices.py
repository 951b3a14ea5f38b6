"""``lamella devices``: what can compute here, and with how much memory."""

from __future__ import annotations

import os

from lamella import api
from lamella.cli.output import JsonFlag, print_json, stdout, table
from lamella.config import Config
from lamella.core.units import format_bytes


def devices(json: JsonFlag = False) -> None:
    """List ggml's devices and mark the one that plans are made for.

    That is the one with most free memory, or the one that LAMELLA_DEVICE names.  The CPU's memory honours the limits of
    its control group.
    """
    found, chosen = api.devices(Config.from_environment(os.environ).device)
    if json:
        print_json({"devices": found, "chosen": chosen.name})
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
