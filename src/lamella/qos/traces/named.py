"""Traces as the command line names them: a file, or ``KIND:NAME=VALUE,...``.

    poisson:rate=2,seconds=600,prompt=128,generated=64,seed=1
    bursts:rate=1,peak=6,every=60,length=15,seconds=600
    day:rate=1,swing=0.8,period=3600,seconds=3600,batch=0.2

``interactive=SHARE`` and ``batch=SHARE``, or any other name, are shares of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from lamella.core.errors import InvalidRequest
from lamella.qos.traces.arrivals import DEFAULT_CLASS, Trace
from lamella.qos.traces.files import read_trace
from lamella.qos.traces.generators import Lengths, Load, bursts, day, poisson

Make = Callable[..., Trace]
KINDS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "poisson": (poisson, ()),
    "bursts": (bursts, ("peak", "every", "length")),
    "day": (day, ("swing", "period")),
}
_LOAD = {"rate": 1.0, "seconds": 600.0, "prompt": 128.0, "generated": 64.0, "spread": 0.6, "seed": 0.0}


def named_trace(name: str) -> Trace:
    """The trace of that name.

    Raises:
        InvalidRequest: no such file or kind, a setting that has no meaning; says what there is.
    """
    kind, colon, settings = name.partition(":")
    if not colon or kind not in KINDS:
        if colon and not Path(name).exists():
            raise InvalidRequest(f"no trace '{name}'; name a file, or one of {', '.join(f'{k}:...' for k in KINDS)}")
        return read_trace(Path(name))
    make, own = KINDS[kind]
    values = {**_LOAD, **_read_settings(name, settings)}
    if kind == "bursts" and "peak" not in values:
        raise InvalidRequest(f"{name}: bursts need a peak, for example peak={5 * values['rate']:g}")
    shares = {k: v for k, v in values.items() if k not in _LOAD and k not in own}
    if shares and DEFAULT_CLASS not in shares:
        shares[DEFAULT_CLASS] = max(0.0, 1 - sum(shares.values()))
    load = Load(
        rate=values["rate"],
        seconds=values["seconds"],
        prompt=_lengths(values["prompt"], values["spread"]),
        generated=_lengths(values["generated"], values["spread"]),
        classes=shares or {DEFAULT_CLASS: 1.0},
    )
    return make(load, seed=int(values["seed"]), **{k: values[k] for k in own if k in values})


def _lengths(median: float, spread: float) -> Lengths:
    """Lengths up to eight times the median."""
    return Lengths(int(median), spread, most=8 * max(1, int(median)))


def _read_settings(name: str, text: str) -> dict[str, float]:
    found = {}
    for setting in filter(None, text.split(",")):
        key, _, value = setting.partition("=")
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = math.nan
        if not math.isfinite(found[key]):
            raise InvalidRequest(f"{name}: '{setting}' is not NAME=NUMBER")
    return found
