"""What a model is made of, as far as planning needs to know: names, shapes and types, no weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from lamella.core.precision import GGML_TYPES, GgmlType

_LAYER = re.compile(r"blk\.(\d+)\.")
_OUTPUT_PREFIXES = ("output", "cls.", "enc.output", "dec.output")
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d.weight", "altup", "laurel", "time_mix", "shortconv.conv",
    "position_embd.weight", "token_types.weight", "attn_rel_b.weight", "per_layer_model_proj",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One weight tensor.

    Attributes:
        name: GGUF name, for example ``blk.3.attn_q.weight``.
        shape: ggml order: row length first, then rows, then experts.
        type_name: ggml type the model file stores it in.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str

    @property
    def type(self) -> GgmlType:
        return GGML_TYPES[self.type_name]

    @property
    def row_length(self) -> int:
        return self.shape[0]

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.bytes_as(self.type)

    @property
    def layer(self) -> int | None:
        """Index of the transformer block, or None for embedding, head and what else stands outside."""
        match = _LAYER.match(self.name)
        return int(match.group(1)) if match else None

    @property
    def is_matrix(self) -> bool:
        """Whether this is a weight matrix that precision decisions apply to.

        Vectors (norms, biases), and small tables that llama.cpp needs in F32 (routers, convolutions,
        state-space parameters) keep the type of the model file, as in llama-quantize
        (``tensor_allows_quantization`` in llama-quant.cpp).
        """
        if len(self.shape) < 2 or not self.name.endswith(".weight"):
            return False
        return not any(part in self.name for part in _KEPT)

    def bytes_as(self, ggml_type: GgmlType) -> int:
        return ggml_type.row_bytes(self.row_length) * self.n_rows


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Transformer block ``index`` and its tensors, in file order."""

    index: int
    tensors: tuple[TensorSpec, ...]

    @property
    def matrices(self) -> tuple[TensorSpec, ...]:
        return tuple(t for t in self.tensors if t.is_matrix)

    @property
    def n_weights(self) -> int:
        return sum(t.n_weights for t in self.tensors)


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Tells models, and weights of one model, apart.

    Attributes:
        architecture: ``general.architecture``, for example ``llama``.
        name: ``general.name``, or the file's stem.
        structure: SHA-256 over hyper-parameters, tokenizer and the tensors' names and shapes: equal for
            all precisions of a model, so shards of equal structure may be mixed.
        weights: SHA-256 over the tensors' types and samples of their data: differs when the weights do.
            Empty for specifications without weights.
    """

    architecture: str
    name: str
    structure: str
    weights: str = ""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's shape.

    Attributes:
        hyperparameters: the scalar ``<architecture>.*`` metadata without the prefix, for example ``embedding_length``.
    """

    identity: ModelIdentity
    n_layers: int
    tensors: tuple[TensorSpec, ...]
    hyperparameters: Mapping[str, int | float | str | bool] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        by_layer: dict[int, list[TensorSpec]] = {i: [] for i in range(self.n_layers)}
        for tensor in self.tensors:
            if tensor.layer is not None:
                by_layer[tensor.layer].append(tensor)
        return tuple(LayerSpec(i, tuple(ts)) for i, ts in sorted(by_layer.items()))

    @property
    def outside(self) -> tuple[TensorSpec, ...]:
        """Tensors of no layer: embedding, final norm, head."""
        return tuple(t for t in self.tensors if t.layer is None)

    @property
    def n_weights(self) -> int:
        return sum(t.n_weights for t in self.tensors)

    @property
    def n_bytes(self) -> int:
        return sum(t.n_bytes for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes / self.n_weights

    @property
    def context_length(self) -> int:
        """Longest context the model was trained for, 0 where the file does not say, or says no length."""
        said = self.hyperparameters.get("context_length", 0)
        return said if type(said) is int and said > 0 else 0

    def tensor(self, name: str) -> TensorSpec:
        return next(t for t in self.tensors if t.name == name)


def is_output(tensor: TensorSpec) -> bool:
    """Whether the tensor belongs to the head group (final norm, head) rather than the embedding group."""
    return tensor.layer is None and tensor.name.startswith(_OUTPUT_PREFIXES)


METADATA_LABEL = "meta"
"""Of the shard without tensors: metadata and tokenizer."""


@dataclass(frozen=True, slots=True)
class ShardGroup:
    """The tensors that share one shard file.

    Attributes:
        number: ``split.no``; 0 holds metadata and tokenizer only, layer i is i + 1, then embedding, then head.
        label: for people: ``meta``, ``layer 3``, ``embedding``, ``head``.
    """

    number: int
    label: str
    tensors: tuple[TensorSpec, ...]


def shard_groups(spec: ModelSpec) -> Iterator[ShardGroup]:
    """How a store cuts a model into files; depends on the structure only, never on types (docs/store-format.md).

    Tensors stand by name, because tools write them in different orders (llama-quantize sorts what converters do not)
    and a layer must be the same shard whichever file it came from.
    """
    layers, outside = spec.layers, spec.outside
    embedding, head = (t for t in outside if not is_output(t)), (t for t in outside if is_output(t))
    parts = ((), *(layer.tensors for layer in layers), embedding, head)
    for number, (label, tensors) in enumerate(zip(shard_labels(len(layers)), parts, strict=True)):
        yield ShardGroup(number, label, _by_name(tensors))


def shard_labels(n_layers: int) -> list[str]:
    """Labels of a variant's shards, in split order (docs/store-format.md, "Shards")."""
    return [METADATA_LABEL, *(f"layer {i}" for i in range(n_layers)), "embedding", "head"]


def _by_name(tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(sorted(tensors, key=lambda t: t.name))
