"""Help in groups, plain text, for commands with many options; ``rich_help_panel`` names an option's group."""

from __future__ import annotations

from typing import Any

from lamella.cli.numbers import CheckedCommand

UNNAMED = "Options"


class GroupedCommand(CheckedCommand):
    """Lists the options under their groups, in the order in which they are declared; those without one come last."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Called for ``--help``."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                is_argument = param.param_type_name == "argument"
                group = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or UNNAMED
                groups.setdefault(group, []).append(record)
        last = groups.pop(UNNAMED, [])
        for name, records in {**groups, UNNAMED: last}.items():
            with formatter.section(name):
                formatter.write_dl(records)
