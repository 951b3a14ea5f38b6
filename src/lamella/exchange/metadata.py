"""What an exported file says about itself: where its weights come from, which plan they follow, and which type it is.

    write_description(header, describe(store, variant, tensors))
    read_description(path)      # None for a file that another tool made, or changed

Other programs ignore ``lamella.*`` (docs/artifacts.md, "Exported file").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lamella.core.artifacts import Plan, Variant, from_json, to_json
from lamella.core.model import ModelIdentity, TensorSpec
from lamella.llama.gguf import Header, ModelFile, Scalar, TensorData, weights_hash
from lamella.store.sources import IMPORTANCE_SETTING
from lamella.version import __version__

FILE_TYPE_SETTING = "file_type"
"""Setting of an imported variant's plan: ``general.file_type`` of the file it came from."""
QUANTIZE_PREFIX = "quantize."
"""Of llama-quantize's keys about its importance matrix; an imported variant's plan has them as settings."""

_VERSION, _VARIANT, _PLAN = "lamella.version", "lamella.variant", "lamella.plan"
_MODEL_NAME, _MODEL_STRUCTURE, _MODEL_WEIGHTS = "lamella.model.name", "lamella.model.structure", "lamella.model.weights"
_WEIGHTS, _IMPORTANCE = "lamella.weights", "lamella.importance_matrix"
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION

# enum llama_ftype (llama.h).  Of K-quants the plain mix: M and L name recipes of llama-quantize that were not followed.
_FILE_TYPES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18,
    "IQ1_S": 24, "IQ1_M": 31, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ2_S": 28, "IQ3_XXS": 23, "IQ3_S": 26,
    "IQ4_NL": 25, "IQ4_XS": 30, "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38, "NVFP4": 39, "Q1_0": 40, "Q2_0": 41,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Description:
    """What an exported file knows of itself.

    Attributes:
        variant: its name in the store.
        plan: the variant's plan.
        model: the model file that the weights were made from.
        weights: ``weights_hash`` of the file's own tensors; another value means that they are no longer those.
        file_type: ``general.file_type``.
    """

    variant: str
    plan: Plan
    model: ModelIdentity
    weights: str
    file_type: int


def describe(stores_model: ModelIdentity, variant: Variant, tensors: Iterable[TensorData]) -> Description:
    """The description of a variant with these tensors, given in the order of the file.

    Args:
        stores_model: the source of variants whose plan names no weights.
    """
    tensors = tuple(tensors)
    plan = variant.plan
    model = plan.model if plan.model.weights else stores_model
    said = plan.settings.get(FILE_TYPE_SETTING)
    kind = said if isinstance(said, int) else file_type(t.spec for t in tensors)
    return Description(variant.name, plan, model, weights_hash(tensors), kind)


def file_type(tensors: Iterable[TensorSpec]) -> int:
    """``general.file_type``: llama.cpp's "mostly", of the type that holds most of the weights.

    llama.cpp decides nothing by it and prints it; its own guess, for files without one, counts tensors, where a small
    norm is as much as a matrix.
    """
    n_weights: Counter[str] = Counter()
    for tensor in tensors:
        n_weights[tensor.type_name] += tensor.n_weights
    return _FILE_TYPES[max(n_weights, key=lambda name: (n_weights[name], name))]


def write_description(header: Header, description: Description) -> None:
    """Add the keys to the header of a file that has the model's own metadata already."""
    settings = description.plan.settings
    header.set("general.quantization_version", _QUANTIZATION_VERSION, "u32")
    header.set("general.file_type", description.file_type, "u32")
    for key in sorted(k for k in settings if k.startswith(QUANTIZE_PREFIX)):
        header.set(key, settings[key], _kind(settings[key]))
    header.set(_VERSION, __version__, "str")
    header.set(_VARIANT, description.variant, "str")
    header.set(_MODEL_NAME, description.model.name, "str")
    header.set(_MODEL_STRUCTURE, description.model.structure, "str")
    header.set(_MODEL_WEIGHTS, description.model.weights, "str")
    header.set(_WEIGHTS, description.weights, "str")
    if used := settings.get(IMPORTANCE_SETTING):
        header.set(_IMPORTANCE, str(used), "str")
    header.set(_PLAN, to_json(description.plan).decode(), "str")


def read_description(file: ModelFile) -> Description | None:
    """What Lamella wrote into the file when it exported it.

    None where there is nothing, and where the tensors are not those it was written for: tools copy keys that they do
    not know, so the output of ``llama-quantize`` still carries the plan of its input.

    Raises:
        ArtifactError: the plan cannot be read, for example one of a newer format.
    """
    found = file.metadata
    identity = file.spec.identity
    if _PLAN not in found or found.get(_WEIGHTS) != identity.weights:
        return None
    if found.get(_MODEL_STRUCTURE) != identity.structure:
        return None
    plan = from_json(Plan, str(found[_PLAN]).encode(), f"{file.paths[0]}: {_PLAN}")
    made_from = ModelIdentity(
        identity.architecture,
        str(found.get(_MODEL_NAME, identity.name)),
        identity.structure,
        str(found.get(_MODEL_WEIGHTS) or identity.weights),
    )
    return Description(str(found.get(_VARIANT, "")), plan, made_from, identity.weights, _file_type_of(found))


def settings_of_file(file: ModelFile) -> dict[str, int | float | str]:
    """What a file of another tool says about how it was made, as settings of a plan."""
    found = file.metadata
    settings = {FILE_TYPE_SETTING: _file_type_of(found)} if "general.file_type" in found else {}
    return settings | {k: v for k, v in sorted(found.items()) if k.startswith(QUANTIZE_PREFIX)}


def _file_type_of(metadata: Mapping[str, Scalar]) -> int:
    found = metadata.get("general.file_type")
    return found if isinstance(found, int) else 0


def _kind(value: float | str) -> str:
    """GGUF type for a setting, as llama-quantize writes its own."""
    if isinstance(value, str):
        return "str"
    return "u32" if isinstance(value, int) else "f32"
