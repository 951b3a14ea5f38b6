"""The documents that stages hand to each other: measurements, plans, variants.

Each is a frozen dataclass that is written as JSON with a header (format, format version, tool version) and
read back strictly: unknown formats, newer versions, missing fields and non-finite numbers are refused with
the file's name.  ``docs/artifacts.md`` shows one of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from lamella.core.errors import ArtifactError
from lamella.core.foreign import UNREADABLE
from lamella.core.model import ModelIdentity
from lamella.core.precision import Scheme
from lamella.version import __version__

FORMAT_VERSION = 1

Metric = str
"""``jaccard``, ``cosine``, ``outlier``, ``weight-difference`` or ``sensitivity``."""


@dataclass(frozen=True, slots=True)
class LayerScore:
    """What a metric says about one layer.

    Attributes:
        layer: index of the transformer block.
        mean: the score; larger means more important (for ``weight-difference``: more is lost).
        standard_error: of the mean over samples; 0 where the metric is exact.
    """

    layer: int
    mean: float
    standard_error: float = 0.0


@dataclass(frozen=True, slots=True)
class TensorLoss:
    """What it costs to store one tensor in fewer bits, all others kept as they are.

    Attributes:
        tensor: name of the weight.
        probe: ggml type that it was measured at.
        mean: KL(reference || model with this tensor at ``probe``), in nats a token.
        standard_error: of the mean over tokens.
        by_type: ggml type -> the same loss predicted for it, for every type that the rows allow.
        finer: ggml type -> the same loss measured at it, where a second, finer probe was made.
    """

    tensor: str
    probe: str
    mean: float
    standard_error: float
    by_type: Mapping[str, float]
    finer: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdditivityCheck:
    """Whether losses of single tensors add up: all tensors rounded at once.

    Attributes:
        type_name: ggml type of every matrix whose rows allow it.
        predicted: sum of the single losses at that type, in nats a token.
        measured: KL(reference || model so rounded), in nats a token, and its standard error.
    """

    type_name: str
    predicted: float
    measured: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """One text a measurement was taken on.

    Attributes:
        task: the tag given with ``--calibration TASK=FILE``; ``text`` without one, ``self`` if the model wrote it.
        sha256: of the text's bytes; empty for metrics that read weights only.
        n_samples: windows taken from it.
    """

    task: str
    sha256: str
    n_samples: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What each layer contributes, by one metric (docs/artifacts.md).

    Attributes:
        metric: name of the metric.
        model: whose layers.
        settings: everything that changes the result: k, window length, number of samples, seed.
        texts: calibration texts, empty for metrics of the weights alone.
        layers: joint score of each layer, over all texts with equal weight per task.
        per_task: the same for each task alone.
        per_precision: ``weight-difference`` only: precision -> scores.
        tensors: ``sensitivity`` only: what each tensor loses at each type; empty for whole layers.
        checks: ``sensitivity`` only: sums of ``tensors`` against the whole model's loss.
    """

    metric: Metric
    model: ModelIdentity
    settings: Mapping[str, int | float | str]
    texts: Sequence[CalibrationText]
    layers: Sequence[LayerScore]
    per_task: Mapping[str, Sequence[LayerScore]] = field(default_factory=dict)
    per_precision: Mapping[str, Sequence[LayerScore]] = field(default_factory=dict)
    tensors: Sequence[TensorLoss] = ()
    checks: Sequence[AdditivityCheck] = ()

    def importance(self) -> tuple[float, ...]:
        """Joint score of each layer, in layer order."""
        return tuple(score.mean for score in sorted(self.layers, key=lambda s: s.layer))


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What one layer gets.

    Attributes:
        precision: a name of the menu or a ggml type; ``mixed`` where the layer's matrices have several types.
        bytes: of all its tensors at that precision.
        importance: the layer's score in [0, 1] that the policy saw; None for policies that look at none.
        bits_per_weight: of its matrices, as stored; None for policies that choose by layer.
    """

    layer: int
    precision: str
    bytes: int
    importance: float | None = None
    bits_per_weight: float | None = None


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Where the memory of a running variant goes, in bytes."""

    weights: int
    kv_cache: int
    compute: int
    reserve: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.compute + self.reserve


@dataclass(frozen=True, slots=True)
class Plan:
    """Which ggml type each tensor gets, and what that costs.

    Attributes:
        policy: its name (``planning.policies``); ``imported`` for types read off a file.
        model: what the plan is for.
        scheme: how values are rounded into the types.
        settings: the policy's arguments: precision, alpha, mix, seed, targets in bits, context, metric.
        layers: what each layer gets.
        tensors: tensor name -> ggml type, for every tensor of the model.
        bits_per_weight: over all weights of the model, as stored.
        average_bits: mean of the layers' nominal bits, as LSAQ's tables count; a layer whose tensors differ counts
            the stored bits of its matrices.
        bytes: what a running variant needs.
        budget_bytes: what was allowed; None when no budget was given.
        predicted_loss: KL divergence from the reference in nats a token; None for policies that predict none.
    """

    policy: str
    model: ModelIdentity
    scheme: Scheme
    settings: Mapping[str, int | float | str]
    layers: Sequence[LayerPlan]
    tensors: Mapping[str, str]
    bits_per_weight: float
    average_bits: float
    bytes: MemoryNeed
    budget_bytes: int | None = None
    predicted_loss: float | None = None

    @property
    def fits(self) -> bool:
        return self.budget_bytes is None or self.bytes.total <= self.budget_bytes


@dataclass(frozen=True, slots=True)
class ShardRef:
    """One shard of a variant.

    Attributes:
        id: SHA-256 of the shard file.
        label: which part of the model: ``meta``, ``layer 3``, ``embedding``, ``head``.
        n_bytes: size of the file.
    """

    id: str
    label: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Variant:
    """A plan realised in a store: the ordered shards of a model at one choice of types."""

    name: str
    plan: Plan
    shards: Sequence[ShardRef]

    @property
    def n_bytes(self) -> int:
        return sum(shard.n_bytes for shard in self.shards)


Artifact = Measurement | Plan | Variant
_FORMATS: dict[type, str] = {Measurement: "lamella.measurement", Plan: "lamella.plan", Variant: "lamella.variant"}
A = TypeVar("A", Measurement, Plan, Variant)
T = TypeVar("T")


def to_json(artifact: Artifact) -> bytes:
    """Canonical JSON: sorted keys, two spaces, a final newline; equal artifacts give equal bytes."""
    return write_document(_FORMATS[type(artifact)], to_plain(artifact))


def write_document(kind: str, fields: Mapping[str, Any]) -> bytes:
    """A document of format ``kind`` in canonical JSON.

    Raises:
        ArtifactError: a number is NaN or infinite, which JSON cannot hold.
    """
    _refuse_non_finite(fields, "")
    document = {"format": kind, "format_version": FORMAT_VERSION, "tool_version": __version__, **fields}
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n"


def to_plain(artifact: Artifact) -> dict[str, Any]:
    """The artifact as dictionaries and lists, derived values (``fits``, ``total``) included.

    Raises:
        ArtifactError: a number is NaN or infinite, which JSON cannot hold.
    """
    plain: dict[str, Any] = msgspec.to_builtins(artifact)
    _refuse_non_finite(plain, "")
    if isinstance(artifact, Plan):
        plain["fits"] = artifact.fits
        plain["bytes"]["total"] = artifact.bytes.total
    if isinstance(artifact, Variant):
        plain["plan"] = to_plain(artifact.plan)
    return plain


def from_json(kind: type[A], data: bytes, source: str) -> A:
    """Read an artifact of the given kind.

    Args:
        source: named in errors, usually the path.

    Raises:
        ArtifactError: no such document, of another kind, or of a newer format than this version reads.
    """
    return read_document(kind, _FORMATS[kind], data, source)


def read_document(kind: type[T], expected: str, data: bytes, source: str) -> T:
    """Read a document of format ``expected`` into the dataclass of its fields.

    Raises:
        ArtifactError: as ``from_json``.
    """
    try:
        document = msgspec.json.decode(data)
    except UNREADABLE as error:
        raise ArtifactError(f"{source} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != expected:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise ArtifactError(f"{source} is not a {expected} document (format: {found!r})")
    version = document.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ArtifactError(
            f"{source} has format version {version!r}; "
            f"this version of Lamella ({__version__}) reads 1 to {FORMAT_VERSION}"
        )
    try:
        return msgspec.convert(document, kind)
    except UNREADABLE as error:
        raise ArtifactError(f"{source}: {error}") from None


def check_same_structure(artifact: Measurement | Plan, model: ModelIdentity, what: str) -> None:
    """Refuse an artifact that was made for another model.

    Raises:
        ArtifactError: the structures differ (architecture, tokenizer, tensor names or shapes).
    """
    if artifact.model.structure != model.structure:
        raise ArtifactError(
            f"{what} is for {artifact.model.name} ({artifact.model.architecture}), "
            f"not for {model.name} ({model.architecture})"
        )


def check_same_weights(measurement: Measurement, model: ModelIdentity) -> None:
    """Refuse a measurement that was taken on another model, or on other weights of the same model.

    Raises:
        ArtifactError: says which.
    """
    check_same_structure(measurement, model, "the measurement")
    if measurement.model.weights and model.weights and measurement.model.weights != model.weights:
        raise ArtifactError(
            f"the measurement was taken on other weights of {model.name} (a finetune, or another precision); "
            "measure this file"
        )


def _refuse_non_finite(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ArtifactError(f"{path or 'value'} is {value}, which an artifact cannot hold")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _refuse_non_finite(item, f"{path}[{i}]")
