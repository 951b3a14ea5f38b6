"""``lamella store``: the commands of ``store`` and ``keeping`` under one name."""

from __future__ import annotations

from lamella.cli import keeping
from lamella.cli.store import app

__all__ = ["app"]

keeping.add_to(app)
