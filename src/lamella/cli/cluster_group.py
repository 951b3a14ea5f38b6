"""``lamella cluster``: the commands of ``cluster``, ``cluster_plan`` and ``cluster_share`` under one name."""

from __future__ import annotations

from lamella.cli.cluster import app
from lamella.cli.cluster_plan import cluster_plan
from lamella.cli.cluster_share import cluster_share

__all__ = ["app"]

app.command("plan")(cluster_plan)
app.command("share")(cluster_share)
