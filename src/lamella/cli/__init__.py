"""The command line: one module for each command group, over the Python API (``lamella.api``).

``main`` is the only place where errors become exit codes.
"""

from __future__ import annotations

from lamella.cli.main import main

__all__ = ["main"]
