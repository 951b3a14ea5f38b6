"""Lamella: large language models at the precision that memory, load and power allow, changed while they run."""

from lamella.version import __version__

__all__ = ["__version__"]
