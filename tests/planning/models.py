"""Small models made of numbers, for tests of planning."""

from lamella.core.model import ModelIdentity, ModelSpec, TensorSpec


def tiny_spec(
    n_layers: int = 4, hidden: int = 256, wide: int = 512, weights: str = "w", type_name: str = "F16"
) -> ModelSpec:
    tensors = [TensorSpec("token_embd.weight", (hidden, 1000), type_name)]
    for i in range(n_layers):
        tensors += [
            TensorSpec(f"blk.{i}.attn_norm.weight", (hidden,), "F32"),
            TensorSpec(f"blk.{i}.attn_q.weight", (hidden, hidden), type_name),
            TensorSpec(f"blk.{i}.ffn_down.weight", (wide, hidden), type_name),
        ]
    tensors += [TensorSpec("output_norm.weight", (hidden,), "F32")]
    return ModelSpec(ModelIdentity("llama", "tiny", "s", weights), n_layers, tuple(tensors))
