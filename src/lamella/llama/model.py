"""A loaded model."""

from __future__ import annotations

import ctypes as ct
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama import api, devices, library, log
from lamella.llama.handle import Handle
from lamella.llama.vocabulary import Vocabulary

LOAD_WITHOUT_MMAP, LOAD_MMAP = 0, 1  # enum llama_load_mode
ALL_LAYERS = -1  # llama_model_params.n_gpu_layers: any negative number
FILE_POOLINGS = ("1", "2", "3")  # enum llama_pooling_type: mean, cls, last; 4 is for ranking


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers ``first`` to ``end - 1`` and the device that computes them.

    Attributes:
        device: ggml's name of it; None for the CPU.
    """

    device: str | None
    first: int
    end: int


class Model(Handle):
    """A loaded model, its weights memory-mapped and read-only.

    Attributes:
        vocabulary: its tokenizer.
    """

    def __init__(self, address: Any) -> None:
        super().__init__(address, library.load().llama.llama_model_free)
        self.vocabulary = Vocabulary(self)

    @classmethod
    def load(
        cls,
        paths: Sequence[Path],
        *,
        n_gpu_layers: int = 0,
        repack: bool = False,
        without_weights: bool = False,
        device: str | None = None,
        layers: Sequence[LayerRange] = (),
    ) -> Model:
        """Load a model from one file or from all parts of a split one, in order (``llama_model_load_from_splits``).

        Args:
            n_gpu_layers: layers for the GPUs; 0 keeps everything on the CPU, long prompts too.
            repack: let llama.cpp copy weights into CPU-specific layouts (``use_extra_bufts``); such weights cannot
                be switched to mapped shards.
            device: name of a ggml device that holds the KV cache and computes what it has the weights of.  All weights
                are loaded into mapped host memory, to be placed on the device by ``DeviceShard``: what llama.cpp itself
                uploads sits in one buffer, of which no part can be freed.  In place of ``n_gpu_layers``.
            layers: the same with several devices: which computes each layer, from the first to the last.  Embedding and
                head stay with the CPU.
            without_weights: read the header only and simulate allocations, for a dry run (``no_alloc``).

        Raises:
            InvalidRequest: there is no such device, or too many of them.
            EngineFailed: llama.cpp refuses the model; says what it said.
        """
        lib = library.load()
        params = lib.llama.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        no_devices = (ct.c_void_p * 1)(None)
        if device is not None or layers:
            chosen, shares, params.n_gpu_layers = _split(device, layers)
            overrides = _all_on_host()
            params.devices = ct.cast(chosen, ct.c_void_p)
            params.tensor_split = ct.cast(shares, type(params.tensor_split))
            params.tensor_buft_overrides = ct.cast(overrides, ct.c_void_p)
        elif n_gpu_layers == 0:  # else llama.cpp may still send large batches to a GPU (op_offload)
            params.devices = ct.cast(no_devices, ct.c_void_p)
        params.use_extra_bufts = repack
        params.no_alloc = without_weights
        params.load_mode = LOAD_WITHOUT_MMAP if without_weights else LOAD_MMAP
        names = (ct.c_char_p * len(paths))(*(os.fsencode(p) for p in paths))
        log.forget_complaints()
        address = lib.llama.llama_model_load_from_splits(names, len(paths), params)
        if not address:
            raise EngineFailed(f"llama.cpp cannot load {paths[0]}: {log.complaints()}")
        return cls(address)

    @property
    def n_layers(self) -> int:
        return int(library.load().llama.llama_model_n_layer(self.address))

    @property
    def name(self) -> str:
        """``general.name`` of the model file, or nothing."""
        return self._metadata("general.name") or ""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of what kind of model it is."""
        return self._metadata("general.architecture") or ""

    @property
    def has_recurrent_state(self) -> bool:
        """Whether a part of its memory is one state for all tokens, of which no beginning can be cut off."""
        llama = library.load().llama
        return bool(llama.llama_model_is_recurrent(self.address) or llama.llama_model_is_hybrid(self.address))

    @property
    def trained_context(self) -> int:
        return int(library.load().llama.llama_model_n_ctx_train(self.address))

    @property
    def kv_bytes_per_token(self) -> int:
        """What an F16 KV cache takes for a token, at most: layers without one and windows count too."""
        llama = library.load().llama
        head_size = llama.llama_model_n_embd(self.address) // max(1, llama.llama_model_n_head(self.address))
        return int(2 * 2 * head_size * llama.llama_model_n_head_kv(self.address) * self.n_layers)

    @property
    def n_embd(self) -> int:
        """Length of a token's state, and of an embedding."""
        return int(library.load().llama.llama_model_n_embd_out(self.address))

    @property
    def has_pooling(self) -> bool:
        """Whether the model file says how embeddings are made of token states."""
        architecture = self._metadata("general.architecture")
        return self._metadata(f"{architecture}.pooling_type") in FILE_POOLINGS

    def _metadata(self, key: str) -> str | None:
        read = library.load().llama.llama_model_meta_val_str
        value = ct.create_string_buffer(64)
        n_bytes = read(self.address, key.encode(), value, len(value))
        if n_bytes >= len(value):  # cut off, with a zero byte in the last place
            value = ct.create_string_buffer(n_bytes + 1)
            read(self.address, key.encode(), value, len(value))
        return value.value.decode("utf-8", "replace") if n_bytes >= 0 else None

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of the GGUF, or None; bytes of it that are no UTF-8 become U+FFFD."""
        template = library.load().llama.llama_model_chat_template(self.address, None)
        return template.decode("utf-8", "replace") if template else None


def _all_on_host() -> Any:
    """Overrides by which llama.cpp keeps every weight in host memory; their memory must outlive the load."""
    lib = library.load()
    cpu = lib.ggml.ggml_backend_dev_by_type(library.DEVICE_TYPE_CPU)
    host = lib.base.ggml_backend_dev_buffer_type(cpu)
    return (api.BufferTypeOverride * 2)(api.BufferTypeOverride(b".*", host), api.BufferTypeOverride(None, None))


def _split(device: str | None, layers: Sequence[LayerRange]) -> tuple[Any, Any, int]:
    """``devices``, ``tensor_split`` and ``n_gpu_layers`` by which llama.cpp gives layers to devices.

    llama.cpp leaves the first layers to the CPU and parts the others, the head as one more, by shares: layer i, counted
    from the first one parted, goes to the first device whose shares, added up, are above i over their number.  Half a
    layer is taken from the first share and given to the last, so that no layer is on an edge.
    """
    if device is not None:
        return (ct.c_void_p * 2)(devices.address(device), None), None, ALL_LAYERS
    lib = library.load()
    parted = list(layers[1:] if layers[0].device is None else layers)
    most = int(lib.llama.llama_max_devices())
    if len(parted) > most:
        raise InvalidRequest(f"layers on {len(parted)} devices; llama.cpp has room for {most}")
    cpu = int(lib.ggml.ggml_backend_dev_by_type(library.DEVICE_TYPE_CPU))
    addresses = [cpu if r.device is None else devices.address(r.device) for r in parted]
    shares = [float(r.end - r.first) for r in parted]
    if shares:
        shares[0] -= 0.5
        shares[-1] += 1.5
    n_parted = sum(r.end - r.first for r in parted)
    n_gpu_layers = n_parted + 1 if parted else 0
    return (ct.c_void_p * (len(addresses) + 1))(*addresses, None), (ct.c_float * most)(*shares), n_gpu_layers
