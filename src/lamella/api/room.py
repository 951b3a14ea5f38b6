"""What a server's engine opens beside the weights, and what memory leaves for these.

room = Room.of(load("smollm2"), EngineSettings(store="", n_ctx=512, n_sequences=1), budget_bytes=300 * MIB)
room.largest(model, measurement)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from lamella.api.losses import loss_request
from lamella.batching.opened_context import cells_by_room, context_options
from lamella.batching.settings import EngineSettings
from lamella.core.artifacts import Measurement, Plan
from lamella.core.errors import DoesNotFit
from lamella.core.units import MIB
from lamella.llama.context import ContextOptions
from lamella.llama.devices import besides_cpu
from lamella.llama.gguf import ModelFile
from lamella.llama.model import Model
from lamella.measuring import nothing_lost
from lamella.planning.policies import make_plan
from lamella.planning.request import Overhead
from lamella.resources.need import default_reserve, file_overhead
from lamella.run.starting import CANDIDATE_BYTES, GROWTH_BYTES

PROCESS_BYTES, TOKENIZER_BYTES = 40 * MIB, 448
"""Private memory of an engine's process before it has a model, and what llama.cpp's tokenizer adds for each token of
the vocabulary.  A process had 29.2 MiB, then 49.1 with SmolLM2's 49152 tokens and 73.2 with Qwen2.5's 151936; the
engine of a server, which measures kernels first, 52 to 57 with SmolLM2."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory for a running variant, and what an engine opens in it besides weights.

    Attributes:
        budget_bytes: for everything.
        overhead: KV cache and buffers as the engine will open them, and a reserve.
        settings: what a plan notes of them.
    """

    budget_bytes: int
    overhead: Overhead
    settings: Mapping[str, int | float | str]

    @classmethod
    def of(cls, source: ModelFile, engine: EngineSettings, budget_bytes: int) -> Self:
        """What an engine leaves of a budget; a ceiling of the engine is the budget, and its process counts as well.

        Raises:
            EngineFailed: llama.cpp cannot run the model with these settings.
        """
        options = opened_context(source, engine)
        overhead, reserve = file_overhead(source.paths, options), default_reserve(budget_bytes)
        if engine.memory_bytes:
            reserve = max(reserve, _process_bytes(source, options))
        settings: dict[str, int | float | str] = {
            "context": options.n_ctx,
            "parallel": engine.n_sequences,
            "cells": options.cells,
            "kv_type": options.kv_type,
        }
        return cls(budget_bytes, replace(overhead, reserve_bytes=reserve), settings)

    def largest(self, model: str, measured: Measurement) -> Plan:
        """The best plan that the budget holds.

        Raises:
            DoesNotFit: none; says what the smallest needs.
        """
        request = replace(
            loss_request(model, measured),
            budget_bytes=self.budget_bytes,
            overhead=self.overhead,
            settings={"metric": measured.metric, **self.settings},
        )
        return make_plan("knapsack", request)

    def check(self, source: ModelFile) -> None:
        """Refuse memory that no plan fits, before minutes are spent on measuring.

        Raises:
            DoesNotFit: as ``largest``.
        """
        try:
            self.largest(str(source.paths[0]), nothing_lost(source.spec))
        except DoesNotFit as refused:
            refused.smallest_plan = replace(refused.smallest_plan, predicted_loss=None)  # nobody measured it
            raise


def opened_context(source: ModelFile, engine: EngineSettings) -> ContextOptions:
    """The context that an engine of these settings opens, with the memory that is free now.

    Raises:
        EngineFailed: llama.cpp cannot read the model.
    """
    with Model.load(source.paths, without_weights=True) as model:
        return cells_by_room(context_options(engine), engine, model, besides_cpu(engine.device))


def _process_bytes(source: ModelFile, options: ContextOptions) -> int:
    """What a ceiling counts of an engine besides weights and context (``run.starting``), a little more than less."""
    n_tokens = source.spec.tensor("token_embd.weight").n_rows
    beside_weights = sum(path.stat().st_size for path in source.paths) - source.spec.n_bytes  # tokenizer, metadata
    growth = GROWTH_BYTES + options.n_sequences * n_tokens * CANDIDATE_BYTES
    return PROCESS_BYTES + n_tokens * TOKENIZER_BYTES + beside_weights + growth
