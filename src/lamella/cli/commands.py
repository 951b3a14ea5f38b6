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
        summary: what it does, in a line of that list.
        target: ``module:name`` below ``lamella.cli``, of a function or of a ``typer.Typer`` with commands of its own.
        settings: click's, for its context; None for its own.
    """

    heading: str
    summary: str
    target: str
    settings: Mapping[str, Any] | None = None

    def load(self, name: str) -> Any:
        """The command, made by typer."""
        module, attribute = self.target.split(":")
        found = getattr(importlib.import_module(f"lamella.cli.{module}"), attribute)
        is_group = isinstance(found, typer.Typer)
        command = typer.main.get_group(found) if is_group else _command(found, self.settings)
        command.name = name
        return command


COMMANDS: Mapping[str, Place] = {
    "serve": Place(START, "Serve a model or a store's variants; OpenAI's API.", "serve:serve"),
    "chat": Place(START, "Talk to a running server.", "chat:chat"),
    "prepare": Place(START, "Make a model ready to serve: fetch, measure, plan, build.", "prepare:prepare"),
    "doctor": Place(START, "Say whether models can run here, and how to mend it.", "doctor:doctor"),
    "devices": Place(START, "List devices, and the one that plans are made for.", "devices:devices"),
    "inspect": Place(STEP_BY_STEP, "Show a model's layers, types and sizes.", "inspect:inspect"),
    "measure": Place(STEP_BY_STEP, "Measure what each layer contributes.", "measure:measure"),
    "imatrix": Place(STEP_BY_STEP, "Gather an importance matrix for 'build --imatrix'.", "imatrix:imatrix"),
    "plan": Place(STEP_BY_STEP, "Decide how many bits each layer gets.", "plan:plan"),
    "frontier": Place(STEP_BY_STEP, "Show all sizes and their predicted loss.", "frontier:frontier"),
    "ladder": Place(STEP_BY_STEP, "Plan and build variants that share layers.", "ladder:ladder"),
    "build": Place(STEP_BY_STEP, "Build variants into a store.", "build:build"),
    "run": Place(RUNNING, "Talk to a variant; change to another meanwhile.", "run:run"),
    "profile": Place(RUNNING, "Measure speed, memory and energy of variants here.", "profile:profile"),
    "simulate": Place(RUNNING, "Replay a trace of requests in virtual time.", "simulate:simulate"),
    "eval": Place(RUNNING, "Evaluate variants: perplexity, divergence, tasks.", "eval:evaluate"),
    "lm-eval": Place(RUNNING, "Run tasks of lm-evaluation-harness.", "lm_eval:lm_eval", WHAT_FOLLOWS_IS_ANOTHERS),
    "store": Place(STORES, "Look into a store, check it, mend it, delete from it.", "store_group:app"),
    "export": Place(STORES, "Write a variant as one GGUF file.", "exchange:export_variant"),
    "import": Place(STORES, "Make a GGUF file of the same model a variant.", "exchange:import_file"),
    "pull": Place(ELSEWHERE, "Take a variant over from a remote store.", "remote:pull"),
    "push": Place(ELSEWHERE, "Send a variant to a remote store.", "remote:push"),
    "serve-store": Place(ELSEWHERE, "Let other machines pull from a store.", "remote:serve_store"),
    "cluster": Place(ELSEWHERE, "Spread a model over several machines.", "cluster_group:app"),
    "node": Place(ELSEWHERE, "Compute layers for a cluster.", "node:node"),
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
