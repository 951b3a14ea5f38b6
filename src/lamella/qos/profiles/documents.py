"""A profile: what each variant of a store does on one machine (docs/artifacts.md).

profile = from_json(path.read_bytes(), str(path))
profile.variant("small").prompt[0].seconds
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from lamella.batching.steps import LONGEST_STEP_SECONDS
from lamella.core.artifacts import Variant, read_document, write_document
from lamella.core.errors import ArtifactError, UnknownVariant
from lamella.core.model import ModelIdentity

FORMAT = "lamella.profile"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured; another one has a profile of its own.

    Attributes:
        processor: what it calls itself.
        n_threads: that computed.
        llama_cpp: version of the library.
    """

    processor: str
    n_threads: int
    llama_cpp: str


@dataclass(frozen=True, slots=True)
class EngineShape:
    """The settings of the engine that change its speed, its limits or its size (``batching.settings``).

    Attributes:
        n_cells: tokens in a KV cache that all sequences share; 0 for ``n_ctx`` of each where memory is plenty.
        device: None for the CPU.
    """

    n_sequences: int
    n_batch: int
    n_ctx: int
    kv_type: str
    layout: str
    longest_step_seconds: float = LONGEST_STEP_SECONDS
    n_cells: int = 0
    device: str | None = None
    is_reproducible: bool = False


@dataclass(frozen=True, slots=True)
class PromptPoint:
    """A prompt of ``n_tokens`` alone, from its arrival to its first token.

    Attributes:
        n_seen: how many observations the time is the mean of.
    """

    n_tokens: int
    seconds: float
    n_seen: float = 1.0


@dataclass(frozen=True, slots=True)
class StepPoint:
    """A step in which ``n_sequences`` write one token each.

    Attributes:
        depth: tokens that each has in the cache, in the mean.
        n_seen: how many observations the time is the mean of.
    """

    n_sequences: int
    depth: float
    seconds: float
    n_seen: float = 1.0


@dataclass(frozen=True, slots=True)
class MixedPoint:
    """``n_sequences`` write while a prompt of ``n_prompt`` tokens is read in ``n_steps`` steps.

    Attributes:
        depth: tokens that each writing sequence has in the cache, in the mean.
        seconds: from the prompt's arrival to its first token.
    """

    n_sequences: int
    depth: float
    n_prompt: int
    n_steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a variant's answers are.

    Attributes:
        kl: divergence from the reference in nats a token; None where nobody knows.
        is_measured: ``kl`` was measured (``lamella eval``); else the plan predicted it.
        perplexity: on the text of the evaluation, or None.
        tasks: accuracy by tasks file.
    """

    kl: float | None = None
    is_measured: bool = False
    perplexity: float | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VariantProfile:
    """One variant on one machine.

    Attributes:
        name: of the variant.
        content: which shards it was; a variant that was replaced has others.
        n_bytes: of its shards.
        bits_per_weight: as stored.
        load_seconds: a process that starts, until it can answer.
        prepare_seconds: to get it into memory beside the running one.
        switch_seconds: in which no step can run, once it is prepared.
        memory_bytes: mapped shards and private memory of the engine at this variant alone.
        prompt, steps, mixed: measured speeds.
        joules_per_token: above idle, a token written; None where energy cannot be measured.
        joules_per_prompt_token: above idle, a token read.
        quality: of its answers.
        others_share: of the processor, the most that others took while a point was measured that counts.
    """

    name: str
    content: str
    n_bytes: int
    bits_per_weight: float
    load_seconds: float
    prepare_seconds: float
    switch_seconds: float
    memory_bytes: int
    prompt: tuple[PromptPoint, ...]
    steps: tuple[StepPoint, ...]
    mixed: tuple[MixedPoint, ...] = ()
    joules_per_token: float | None = None
    joules_per_prompt_token: float | None = None
    quality: Quality = field(default_factory=Quality)
    others_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """The variants of one model on one machine.

    Attributes:
        model: whose variants.
        machine, engine: what the times hold for.
        idle_watts: of the machine when nothing is computed; None where that cannot be measured.
        variants: in any order.
    """

    model: ModelIdentity
    machine: Machine
    engine: EngineShape
    variants: tuple[VariantProfile, ...] = ()
    idle_watts: float | None = None

    def variant(self, name: str) -> VariantProfile:
        """What is known of a variant.

        Raises:
            UnknownVariant: nothing; lists those that are known.
        """
        for found in self.variants:
            if found.name == name:
                return found
        known = ", ".join(sorted(v.name for v in self.variants)) or "none"
        raise UnknownVariant(f"the profile has no variant '{name}'; it has: {known}")


def content_of(variant: Variant) -> str:
    """Which shards a variant is made of, as one short word."""
    return hashlib.sha256("".join(shard.id for shard in variant.shards).encode()).hexdigest()[:16]


def to_json(profile: Profile) -> bytes:
    """Canonical JSON, as all artifacts have it."""
    return write_document(FORMAT, msgspec.to_builtins(profile))


def from_json(data: bytes, source: str) -> Profile:
    """Read a profile.

    Args:
        source: named in errors.

    Raises:
        ArtifactError: no profile, one of a newer format, or one with times or counts that cannot be.
    """
    profile = read_document(Profile, FORMAT, data, source)
    shape = profile.engine
    if min(shape.n_sequences, shape.n_batch, shape.n_ctx) < 1:
        raise ArtifactError(f"{source}: there is no engine of {shape}")
    for variant in profile.variants:
        if fault := _fault(variant):
            raise ArtifactError(f"{source}: variant '{variant.name}' {fault}")
    return profile


def _fault(variant: VariantProfile) -> str | None:
    if not variant.prompt or not variant.steps:
        return "has no measured prompt or no measured step"
    seconds = [
        *(p.seconds for p in variant.prompt),
        *(p.seconds for p in variant.steps),
        *(p.seconds for p in variant.mixed),
    ]
    counts = [
        *(p.n_tokens for p in variant.prompt),
        *(p.n_sequences for p in variant.steps),
        *(n for p in variant.mixed for n in (p.n_sequences, p.n_prompt, p.n_steps)),
    ]
    if min(seconds) <= 0 or min(counts) < 1:
        return "has a point without time or without tokens"
    return None
