"""Which commands there are, and where: a module is loaded when its command is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import typer

from lamella.cli.panels import GroupedCommand

START, STEP_BY_STEP, RUNNING, STORES, ELSEWHERE = (
    "Start here",
    "Measure, plan, build",
    "Run, serve, compare",
    "Stores and files",
    "Other machines",
)
WHAT_FOLLOWS_IS_ANOTHERS: Mapping[str, Any] = MappingProxyType(
    {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
"""Of a command that hands on whatever follows its argument."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command is.

    Attributes:
        heading: that ``lamella --help`` lists it under.
        target: ``module:name`` below ``lamella.cli``, of a function or of a ``typer.Typer`` with commands of its own.
        settings: click's, for its context; None for its own.
    """

    heading: str
    target: str
    settings: Mapping[str, Any] | None = None

    def load(self, name: str) -> Any:
        """The command, made by typer."""
        module, attribute = self.target.split(":")
        found = getattr(importlib.import_module(f"lamella.cli.{module}"), attribute)
        is_group = isinstance(found, typer.Typer)
        command = typer.main.get_group(found) if is_group else _command(found, self.settings)
        command.name, command.rich_help_panel = name, self.heading
        return command


COMMANDS: Mapping[str, Place] = {
    "serve": Place(START, "serve:serve"),
    "chat": Place(START, "chat:chat"),
    "prepare": Place(START, "prepare:prepare"),
    "doctor": Place(START, "doctor:doctor"),
    "devices": Place(START, "devices:devices"),
    "inspect": Place(STEP_BY_STEP, "inspect:inspect"),
    "measure": Place(STEP_BY_STEP, "measure:measure"),
    "imatrix": Place(STEP_BY_STEP, "imatrix:imatrix"),
    "plan": Place(STEP_BY_STEP, "plan:plan"),
    "frontier": Place(STEP_BY_STEP, "frontier:frontier"),
    "ladder": Place(STEP_BY_STEP, "ladder:ladder"),
    "build": Place(STEP_BY_STEP, "build:build"),
    "run": Place(RUNNING, "run:run"),
    "profile": Place(RUNNING, "profile:profile"),
    "simulate": Place(RUNNING, "simulate:simulate"),
    "eval": Place(RUNNING, "eval:evaluate"),
    "lm-eval": Place(RUNNING, "lm_eval:lm_eval", WHAT_FOLLOWS_IS_ANOTHERS),
    "store": Place(STORES, "store_group:app"),
    "export": Place(STORES, "exchange:export_variant"),
    "import": Place(STORES, "exchange:import_file"),
    "pull": Place(ELSEWHERE, "remote:pull"),
    "push": Place(ELSEWHERE, "remote:push"),
    "serve-store": Place(ELSEWHERE, "remote:serve_store"),
    "cluster": Place(ELSEWHERE, "cluster_group:app"),
    "node": Place(ELSEWHERE, "node:node"),
}


class Commands(MutableMapping[str, Any]):
    """The commands by name, each loaded when it is looked up: one command does not pay for all."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = COMMANDS[name].load(name)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("a command stays")

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _command(function: Any, settings: Mapping[str, Any] | None) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(cls=GroupedCommand, context_settings=dict(settings or {}))(function)
    return typer.main.get_command(app)
