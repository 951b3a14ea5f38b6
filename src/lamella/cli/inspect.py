"""``lamella inspect``: what a model file is made of."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lamella import api
from lamella.cli.options import ModelArgument
from lamella.cli.output import JsonFlag, print_json, say, stdout, table
from lamella.core.model import ModelSpec, is_output
from lamella.core.precision import MENU, container
from lamella.core.units import format_bytes


def inspect(model: ModelArgument, json: JsonFlag = False) -> None:
    """Show a model's layers, types and sizes, and which precisions its row lengths allow."""
    spec = api.load_spec(model)
    if json:
        print_json(_document(spec))
        return
    millions = spec.n_weights / 1e6
    say(f"{spec.identity.name}: {spec.identity.architecture}, {spec.n_layers} layers, {millions:.1f} M weights")
    say(f"{format_bytes(spec.n_bytes)}, {spec.bits_per_weight:.2f} bits per weight, context of {spec.context_length}")
    shown = table("part", ">weights", ">bytes", "types")
    for layer in spec.layers:
        types = Counter(t.type_name for t in layer.matrices)
        shown.add_row(f"layer {layer.index}", *_sizes(layer.tensors), _counts(types))
    for label, wanted in (("embedding", False), ("head", True)):
        tensors = [t for t in spec.outside if is_output(t) is wanted]
        shown.add_row(label, *_sizes(tensors), _counts(Counter(t.type_name for t in tensors)))
    stdout.print(shown)
    say("")
    menu = table("rows of", ">matrices", *MENU)
    for row_length, count in sorted(Counter(t.row_length for t in spec.tensors if t.is_matrix).items()):
        menu.add_row(str(row_length), str(count), *(container(p, row_length).name for p in MENU))
    stdout.print(menu)


def _sizes(tensors: Any) -> tuple[str, str]:
    return f"{sum(t.n_weights for t in tensors):,}", format_bytes(sum(t.n_bytes for t in tensors))


def _counts(types: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in types.most_common())


def _document(spec: ModelSpec) -> dict[str, Any]:
    return {
        "model": spec.identity,
        "layers": [
            {"layer": x.index, "weights": x.n_weights, "bytes": sum(t.n_bytes for t in x.tensors)} for x in spec.layers
        ],
        "n_layers": spec.n_layers,
        "n_weights": spec.n_weights,
        "bytes": spec.n_bytes,
        "bits_per_weight": spec.bits_per_weight,
        "context_length": spec.context_length,
        "tensors": [{"name": t.name, "shape": t.shape, "type": t.type_name, "bytes": t.n_bytes} for t in spec.tensors],
    }
