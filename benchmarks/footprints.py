"""What a process holds of the machine, and whether that grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil

N_BLOCKS = 10
"""Neighbouring samples are alike, so a slope's error is taken from the means of so many blocks."""
T_95 = 2.306
"""Student's t for 95 % and ``N_BLOCKS`` - 2 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of one process at one moment.

    Attributes:
        at: seconds on the sampler's clock.
        resident_bytes: all pages, mapped files too.
        private_bytes: anonymous pages.
        descriptors, sockets, threads: how many.
    """

    at: float
    resident_bytes: int
    private_bytes: int
    descriptors: int
    sockets: int
    threads: int


def footprint(pid: int, at: float) -> Footprint:
    """What a process holds now."""
    process = psutil.Process(pid)
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in rollup[1:])}
    with process.oneshot():
        return Footprint(
            at=at,
            resident_bytes=kilobytes["Rss"] * 1024,
            private_bytes=kilobytes["Anonymous"] * 1024,
            descriptors=process.num_fds(),
            sockets=len(process.net_connections("all")),
            threads=process.num_threads(),
        )


async def watch(pids: dict[str, int], should_stop: Callable[[], bool], seconds: float) -> dict[str, list[Footprint]]:
    """Footprints of some processes, every so many seconds."""
    start = time.perf_counter()
    series: dict[str, list[Footprint]] = {name: [] for name in pids}
    while not should_stop():
        now = time.perf_counter() - start
        for name, pid in pids.items():
            series[name].append(footprint(pid, now))
        await asyncio.sleep(seconds)
    return series


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth an hour, and half the width of its 95 % interval."""

    per_hour: float
    plus_minus: float

    @property
    def is_flat(self) -> bool:
        """Growth cannot be told from none."""
        return self.per_hour - self.plus_minus <= 0


def slope(times: Sequence[float], values: Sequence[float]) -> Slope:
    """Straight line through the means of ``N_BLOCKS`` blocks of samples; times in seconds."""
    edges = np.linspace(0, len(times), N_BLOCKS + 1).astype(int)
    x, y = (np.array([np.mean(v[a:b]) for a, b in pairwise(edges)]) for v in (np.array(times), np.array(values)))
    x_centred = x - x.mean()
    spread = float((x_centred**2).sum())
    growth = float((x_centred * y).sum()) / spread
    rest = y - y.mean() - growth * x_centred
    error = float(np.sqrt((rest**2).sum() / (N_BLOCKS - 2) / spread))
    return Slope(growth * 3600, T_95 * error * 3600)
