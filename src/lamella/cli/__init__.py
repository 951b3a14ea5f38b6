"""The command line: one module for each command group, over the Python API (``lamella.api``).

``main`` is the only place where errors become exit codes.
"""

from __future__ import annotations

import sys

from lamella.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
