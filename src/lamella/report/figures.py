"""What every plot is made of: a bare figure, its title and legend, its file.

matplotlib is loaded when the first figure is drawn: commands that draw nothing do not wait for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.errors import InvalidRequest, StorageFailed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150
HEIGHT_INCHES = 4.2
INK, GREY, GRID = "#1f2933", "#616e7c", "#e4e7eb"
LINES = ("#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e", "#c2255c", "#9c6f00", "#1864ab", "#495057")


def empty_figure(width_inches: float, height_inches: float) -> Figure:
    """A figure with nothing in it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), dpi=DPI, layout="constrained")


def over_layers(n_layers: int) -> tuple[Figure, Any]:
    """A figure with axes, as wide as so many layers need."""
    figure = empty_figure(min(14.0, max(7.0, 2 + 0.22 * n_layers)), HEIGHT_INCHES)
    axes = figure.add_subplot()
    keep_quiet(axes)
    return figure, axes


def keep_quiet(axes: Any) -> None:
    """Grey lines left and below, a faint grid behind what is drawn, and no box."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def set_title(axes: Any, title: str, facts: str) -> None:
    """A title, and a line of facts below it."""
    axes.set_title(plain(title), loc="left", color=INK, fontsize=12, fontweight="bold", pad=22)
    axes.text(0, 1.025, plain(facts), transform=axes.transAxes, fontsize=8.5, color=GREY, va="bottom")


def finish_layers(axes: Any, layers: Sequence[int]) -> None:
    """The axis of layers."""
    axes.set_xlabel("layer", color=INK)
    axes.set_xlim(min(layers, default=0) - 0.7, max(layers, default=0) + 0.7)
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=24, integer=True))


def add_legend(axes: Any) -> None:
    """Beside the axes."""
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, labelcolor=INK)


def plain(text: str) -> str:
    """Text from files, safe to draw: a dollar sign would start a formula."""
    return "".join(c for c in text if c.isprintable()).replace("$", r"\$")


def check_suffix(path: Path) -> None:
    """Refuse a kind of file that is not drawn, before anything is computed.

    Raises:
        InvalidRequest: the suffix is none of ``SUFFIXES``.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidRequest(f"{path}: a plot's file name must end in {', '.join(SUFFIXES)}, not '{path.suffix}'")


def save(figure: Figure, path: Path) -> None:
    """Write the file, whole or not at all; equal figures give equal files.

    Raises:
        StorageFailed: it cannot be written.
    """
    import matplotlib as mpl

    kind = path.suffix.lower().removeprefix(".")
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with mpl.rc_context({"svg.hashsalt": "lamella"}):
            figure.savefig(temporary, format=kind, metadata=metadata)
        temporary.replace(path)
    except OSError as error:
        raise StorageFailed(f"cannot write the plot {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def graded(k: int, n: int) -> Any:
    """The k-th of n colours from light, the first, to dark, which keep their order in print."""
    import matplotlib as mpl

    return mpl.colormaps["viridis_r"](k / max(1, n - 1))
