"""What an engine process is made of: opened together, closed together."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lamella.batching import spread
from lamella.batching.embedding import embedder_bytes
from lamella.batching.messages import PROTOCOL_VERSION, Hello, LayerFacts, Sampling, VariantFacts
from lamella.batching.opened_context import cells_by_room, context_options
from lamella.batching.prompts import Prompt, PromptMaker
from lamella.batching.settings import EngineSettings
from lamella.core.artifacts import LayerPlan, Plan, Variant
from lamella.core.cores import usable_cores
from lamella.core.errors import ExceedsCeiling, InvalidRequest, UnknownVariant
from lamella.core.precision import nominal_bits
from lamella.core.units import format_bytes
from lamella.llama import devices, reproducible, rpc
from lamella.llama.context import Context
from lamella.llama.embeddings import Embedder, Pooling
from lamella.llama.grammar import schema_to_grammar
from lamella.llama.model import Model
from lamella.llama.sampling import SamplingOptions
from lamella.planning.words import layer_words
from lamella.resources.machine import cpu_memory
from lamella.run.ceiling import Ceiling
from lamella.run.engine import by_size
from lamella.run.kernel_table import KernelTable, layout_choices
from lamella.run.layouts import MAPPED, Layout
from lamella.run.loading import Loaded, load
from lamella.run.starting import plan_start
from lamella.run.variants import LiveVariants
from lamella.store.store import Store

PROMPT_CACHE_SHARE, MOST_PROMPT_CACHE_BYTES = 1 / 8, 1 << 30
"""Of the available memory, for sequences that left the KV cache, where it is not said how much."""


@dataclass(slots=True)
class EngineParts:
    """A loaded model, its context and its variants, and what requests need of it."""

    settings: EngineSettings
    store: Store
    variants: list[Variant]
    loaded: Loaded
    prompts: PromptMaker
    load_seconds: float
    embedder: Embedder | None = None
    bytes_to_embed: int = 0

    @classmethod
    def open(cls, settings: EngineSettings) -> Self:
        """Load the model at its first variant.

        Raises:
            LamellaError: as ``run.engine.Engine.open``.
        """
        settings.check_possible()
        if settings.is_reproducible:
            reproducible.use_plain_products()
        start = time.monotonic()
        for endpoint in settings.rpc:
            rpc.connect(endpoint)
        device = devices.besides_cpu(settings.device)
        layers = spread.connect(settings.layers)
        store = Store.open(Path(settings.store))
        variants = _served(store, settings.variants)
        options = context_options(settings)
        layouts = (MAPPED,) if device or layers else _layouts(settings, variants)
        first = plan_start(store, variants, settings.variant, options, layouts, settings.memory_bytes)
        loaded = load(
            store,
            first.variant,
            first.layouts,
            lambda model: cells_by_room(options, settings, model, device),
            n_warm=settings.n_warm,
            check=settings.check,
            ceiling=first.ceiling,
            device=device,
            layers=layers,
        )
        return cls(
            settings=settings,
            store=store,
            variants=variants,
            loaded=loaded,
            prompts=PromptMaker(loaded.model),
            load_seconds=time.monotonic() - start,
        )

    @property
    def model(self) -> Model:
        return self.loaded.model

    @property
    def context(self) -> Context:
        return self.loaded.context

    @property
    def live(self) -> LiveVariants:
        return self.loaded.live

    @property
    def n_slots(self) -> int:
        """Sequences of the context: running ones and kept beginnings."""
        return self.context.options.n_sequences

    @property
    def n_cells(self) -> int:
        """Tokens that the KV cache holds."""
        return self.context.options.cells

    def hello(self, variant: str) -> Hello:
        """What this engine is, running at ``variant``."""
        return Hello(
            protocol=PROTOCOL_VERSION,
            pid=os.getpid(),
            model=self.model.name or self.store.path.name,
            architecture=self.model.architecture,
            variant=variant,
            variants=[_facts(v) for v in self.variants],
            n_ctx=min(self.settings.n_ctx, self.n_cells),
            n_cells=self.n_cells,
            n_sequences=self.settings.n_sequences,
            n_vocabulary=self.model.vocabulary.n_tokens,
            n_trained=self.model.trained_context,
            has_chat=self.model.chat_template is not None,
            has_embeddings=self.settings.pooling not in ("auto", "off")
            or (self.settings.pooling == "auto" and self.model.has_pooling),
            load_seconds=self.load_seconds,
            bos_token=self._token_text(self.model.vocabulary.bos),
            eos_token=self._token_text(self.model.vocabulary.eos),
            chat_template=self.model.chat_template,
        )

    def _token_text(self, token: int) -> str:
        return self.model.vocabulary.text([token], special=True) if token >= 0 else ""

    def sampling(self, asked: Sampling, prompt: Prompt) -> SamplingOptions:
        """What was asked, as llama.cpp's samplers take it.

        Raises:
            InvalidRequest: a value outside its range, or a schema that no grammar can follow.
        """
        grammar = prompt.grammar or asked.grammar
        if asked.json_schema is not None:
            grammar = schema_to_grammar(asked.json_schema, is_exact=asked.schema_is_strict)
        return SamplingOptions(
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            min_p=asked.min_p,
            repeat_penalty=asked.repeat_penalty,
            frequency_penalty=asked.frequency_penalty,
            presence_penalty=asked.presence_penalty,
            logit_bias=asked.logit_bias,
            grammar=grammar,
            seed=asked.seed,
        )

    def open_embedder(self) -> Embedder:
        """A context for embeddings; made when first asked for.

        Raises:
            InvalidRequest: the model has none.
            ExceedsCeiling: there is no room for it under the memory ceiling.
        """
        if self.embedder is None:
            settings = self.settings
            if settings.pooling == "off":
                raise InvalidRequest("embeddings are switched off (--pooling off)")
            if self.live.memory.ceiling is not None:
                self._check_room_to_embed(settings.pooling, self.live.memory.ceiling)
            self.embedder = Embedder(self.model, settings.pooling, settings.n_ctx, settings.n_threads)
        return self.embedder

    def _check_room_to_embed(self, pooling: Pooling, ceiling: Ceiling) -> None:
        if not self.bytes_to_embed:
            with self.store.lease(reading=True) as lease:
                paths = self.store.ready_paths(lease.hold(self.live.name))
            self.bytes_to_embed = embedder_bytes(paths, pooling, self.settings.n_ctx)
        needed, room = self.bytes_to_embed, self.live.memory.spare_bytes
        assert room is not None  # there is a ceiling
        if needed > room:
            raise ExceedsCeiling(
                f"embeddings need {format_bytes(needed)} for texts of up to {self.settings.n_ctx} tokens; under the "
                f"memory ceiling of {format_bytes(ceiling.n_bytes)} there is room for {format_bytes(max(0, room))}; a "
                "shorter context (--context), a smaller variant or a larger ceiling (--memory) would do",
                needed_bytes=ceiling.n_bytes - room + needed,
                ceiling_bytes=ceiling.n_bytes,
            )

    def close(self) -> None:
        if self.embedder is not None:
            self.embedder.close()
        self.loaded.close()


def _layouts(settings: EngineSettings, variants: list[Variant]) -> tuple[Mapping[str, Layout], ...]:
    """How weights of each type may be read on the CPU, by speeds measured before where there is a file of them."""
    file = Path(settings.kernel_file) if settings.kernel_file else None
    policy = "mapped" if settings.is_reproducible else settings.layout
    return layout_choices(policy, KernelTable(file, settings.n_threads or usable_cores()), variants)


def prompt_cache_bytes(settings: EngineSettings) -> int:
    """Memory for sequences that left the KV cache: as asked; else none under a ceiling, or a share of what is free."""
    if settings.prompt_cache_bytes is not None:
        return settings.prompt_cache_bytes
    if settings.memory_bytes:
        return 0
    return min(int(PROMPT_CACHE_SHARE * cpu_memory().available_bytes), MOST_PROMPT_CACHE_BYTES)


def _served(store: Store, names: list[str] | None) -> list[Variant]:
    """The variants to serve, largest first.

    Raises:
        UnknownVariant: one of ``names`` is not there.
    """
    found = by_size(store)
    missing = [n for n in names or () if n not in {v.name for v in found}]
    if missing:
        known = ", ".join(sorted(v.name for v in found))
        raise UnknownVariant(f"no variant '{missing[0]}' in {store.path}; there are: {known}")
    return [v for v in found if names is None or v.name in names]


def _facts(variant: Variant) -> VariantFacts:
    return VariantFacts(
        name=variant.name,
        n_bytes=variant.n_bytes,
        bits_per_weight=variant.plan.bits_per_weight,
        predicted_kl=variant.plan.predicted_loss,
        layers=[_layer_facts(variant.plan, layer) for layer in sorted(variant.plan.layers, key=lambda x: x.layer)],
    )


def _layer_facts(plan: Plan, layer: LayerPlan) -> LayerFacts:
    return LayerFacts(precision=layer_words(plan, layer), bits=_layer_bits(plan, layer))


def _layer_bits(plan: Plan, layer: LayerPlan) -> float:
    """As stored where the plan says it, else what its precision is called by; the model's where that says nothing."""
    if layer.bits_per_weight is not None:
        return layer.bits_per_weight
    try:
        return nominal_bits(layer.precision)
    except InvalidRequest:
        return plan.bits_per_weight
