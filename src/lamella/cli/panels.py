"""Help in groups, plain text: options of commands that have many, and commands of the program.

``rich_help_panel`` names the group.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

UNNAMED = "Options"


class GroupedCommand(TyperCommand):
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


class GroupedCommands(TyperGroup):
    """Lists the commands under their groups, in the order in which they are added."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Called for ``--help``."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                group = getattr(command, "rich_help_panel", None) or UNNAMED
                groups.setdefault(group, []).append((name, command.get_short_help_str(limit=90)))
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)
