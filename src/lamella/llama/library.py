"""Find, load and check llama.cpp.

``load()`` is called by everything in this folder before the first C call.  It refuses versions whose struct layout
was never read, and it proves the layout on the loaded library, because a live switch writes into ``ggml_tensor``:
a wrong offset there would corrupt the process instead of failing.
"""

from __future__ import annotations

import ctypes as ct
import functools
import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.core.errors import LayoutMismatch, LibraryError
from lamella.core.precision import GGML_TYPES
from lamella.llama import api
from lamella.llama.log import quiet_by_default

KNOWN_VERSIONS = {"0.3.36": "0.25.3"}
"""llama-cpp-python -> ggml: the pairs whose headers were read for ``api.py``, the newest last."""
NEWEST_KNOWN = f"llama-cpp-python=={list(KNOWN_VERSIONS)[-1]}"

DEVICE_TYPE_CPU = 0  # enum ggml_backend_dev_type


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded libraries.  They live until the process ends.

    Attributes:
        llama: the raw module ``llama_cpp.llama_cpp``.
        base: libggml-base: tensors, quantization, buffers, GGUF.
        ggml: libggml: devices.
        version: of llama-cpp-python.
    """

    llama: Any
    base: Any
    ggml: Any
    version: str


@functools.cache
def load() -> Library:
    """The libraries, loaded, version-checked and initialised (once a process).

    Raises:
        LibraryError: llama-cpp-python is missing or of a version whose layout is not known.
        LayoutMismatch: ``ggml_tensor`` differs from ``api.Tensor``.
    """
    version = installed_version()
    if version not in KNOWN_VERSIONS:
        raise LibraryError(
            f"llama-cpp-python {version} is installed; Lamella knows the memory layout of "
            f"{', '.join(KNOWN_VERSIONS)} only: pip install {NEWEST_KNOWN}"
        )
    try:
        from llama_cpp import llama_cpp
    except (OSError, RuntimeError, ImportError) as error:
        raise LibraryError(f"llama.cpp could not be loaded: {error}") from error
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = Library(llama_cpp, _open(folder, "ggml-base"), _open(folder, "ggml"), version)
    for handle, functions in ((library.base, api.BASE_FUNCTIONS), (library.ggml, api.GGML_FUNCTIONS)):
        _declare(handle, functions)
    found = library.base.ggml_version().decode()
    if found != KNOWN_VERSIONS[version]:
        raise LibraryError(
            f"llama-cpp-python {version} should carry ggml {KNOWN_VERSIONS[version]}, but {found} was loaded"
        )
    quiet_by_default(llama_cpp)
    llama_cpp.llama_backend_init()
    check_tensor_layout(library)
    check_type_table(library)
    return library


def function(name: str, result: object, *arguments: object) -> Any:
    """A function of libllama with types of our own, where llama-cpp-python's cost more than the call."""
    prototype = ct.CFUNCTYPE(result, *arguments)  # type: ignore[arg-type]
    return prototype((name, load().llama._lib))


def installed_version() -> str:
    """Version of the installed llama-cpp-python.

    Raises:
        LibraryError: it is not installed.
    """
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        raise LibraryError(f"llama-cpp-python is not installed: pip install {NEWEST_KNOWN}") from None


def rebuild_command(more: str = "") -> str:
    """What builds llama.cpp for the machine it is run on, with the RPC backend.

    Args:
        more: options of CMake, each with a space before it.
    """
    return (
        f"CMAKE_ARGS='-DGGML_NATIVE=ON -DGGML_RPC=ON{more}' pip install --force-reinstall --no-deps --no-cache-dir "
        f"--no-binary llama-cpp-python {NEWEST_KNOWN}"
    )


def supports_rpc() -> bool:
    """Whether llama.cpp was built with the RPC backend (``CMAKE_ARGS=-DGGML_RPC=ON``)."""
    return bool(load().llama.llama_supports_rpc())


def features() -> frozenset[str]:
    """What the library was built for and this processor has, as llama.cpp names it: ``AVX2``, ``FMA``, ``NEON``."""
    said = load().llama.llama_print_system_info().decode()
    pairs = (part.rpartition(":")[2].partition("=") for part in said.split("|"))
    return frozenset(name.strip() for name, _, value in pairs if value.strip() == "1")


@functools.cache
def load_rpc() -> Any:
    """libggml-rpc: devices of other processes.

    Raises:
        LibraryError: llama.cpp was built without it; says how to get it.
    """
    if not supports_rpc():
        raise LibraryError(f"llama.cpp was built without its RPC backend: {rebuild_command()}")
    handle = _open(Path(load().llama.__file__).parent / "lib", "ggml-rpc")
    _declare(handle, api.RPC_FUNCTIONS)
    return handle


def check_tensor_layout(library: Library, layout: type[ct.Structure] = api.Tensor) -> None:
    """Prove that ``layout`` is the loaded library's ``ggml_tensor``.

    Tensors are made, named, allocated, viewed and multiplied through the API and read through the struct; then type,
    strides, data and name are written through the struct and read back through the API.

    Raises:
        LayoutMismatch: any value differs; says which.
    """
    base = library.base
    q8_0, q4_0 = GGML_TYPES["Q8_0"].code, GGML_TYPES["Q4_0"].code
    expected_size = base.ggml_tensor_overhead() - OBJECT_BYTES
    _expect("size", ct.sizeof(layout), expected_size)
    context = base.ggml_init(api.InitParams(1 << 16, None, True))
    device = library.ggml.ggml_backend_dev_by_type(DEVICE_TYPE_CPU)
    buffer = base.ggml_backend_buft_alloc_buffer(base.ggml_backend_dev_buffer_type(device), 4096)
    try:
        address = base.ggml_new_tensor(context, q8_0, 3, (ct.c_int64 * 4)(64, 5, 3, 1))
        base.ggml_set_name(address, b"layout.probe")
        tensor: Any = ct.cast(address, ct.POINTER(layout)).contents
        _expect("type", tensor.type, q8_0)
        _expect("ne", tuple(tensor.ne), (64, 5, 3, 1))
        _expect("nb", tuple(tensor.nb), (34, 68, 340, 1020))
        _expect("name", tensor.name, b"layout.probe")
        _expect("pointers", (tensor.buffer, tensor.data, tensor.view_src, tensor.extra), (None,) * 4)
        start = base.ggml_backend_buffer_get_base(buffer)
        _expect("allocation", base.ggml_backend_tensor_alloc(buffer, address, start), 0)
        _expect("buffer and data", (tensor.buffer, tensor.data), (buffer, start))
        _check_node_layout(base, context, address, layout)
        probe = (ct.c_char * 32)()
        tensor.type, tensor.data, tensor.name = q4_0, ct.addressof(probe), b"layout.written"
        tensor.nb[0], tensor.nb[1], tensor.nb[2], tensor.nb[3] = 18, 36, 180, 540
        _expect("written bytes", base.ggml_nbytes(address), 540)
        _expect("written data", base.ggml_get_data(address), ct.addressof(probe))
        _expect("written name", base.ggml_get_name(address), b"layout.written")
    finally:
        base.ggml_backend_buffer_free(buffer)
        base.ggml_free(context)


def _check_node_layout(base: Any, context: int, weight: int, layout: type[ct.Structure]) -> None:
    """The fields by which weights are found: operation and sources of a node, and the source of a view."""
    view: Any = ct.cast(base.ggml_view_tensor(context, weight), ct.POINTER(layout)).contents
    _expect("view source", view.view_src, weight)
    vector = base.ggml_new_tensor(context, GGML_TYPES["F32"].code, 3, (ct.c_int64 * 4)(64, 2, 3, 1))
    product: Any = ct.cast(base.ggml_mul_mat(context, weight, vector), ct.POINTER(layout)).contents
    _expect("operation", base.ggml_op_name(product.op), b"MUL_MAT")
    _expect("sources", tuple(product.src)[:3], (weight, vector, None))


OBJECT_BYTES = 32  # sizeof(struct ggml_object), which ggml_tensor_overhead() counts in


def check_type_table(library: Library) -> None:
    """Prove that the type table of ``core.precision`` is the library's.

    Raises:
        LayoutMismatch: a type's name, block length or block size differs.
    """
    for name, ggml_type in GGML_TYPES.items():
        found = library.base.ggml_type_name(ggml_type.code).decode().upper()
        _expect(f"name of type {ggml_type.code}", found, name)
        _expect(f"block of {name}", library.base.ggml_blck_size(ggml_type.code), ggml_type.block_weights)
        _expect(f"block bytes of {name}", library.base.ggml_type_size(ggml_type.code), ggml_type.block_bytes)


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise LayoutMismatch(
            f"ggml_tensor of the loaded llama.cpp is not laid out as known: {what} is {found!r}, "
            f"expected {expected!r}. A live switch would corrupt memory and is refused; install llama-cpp-python "
            + " or ".join(KNOWN_VERSIONS)
        )


def _open(folder: Path, name: str) -> ct.CDLL:
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = folder / f"lib{name}.{suffix}"
    try:
        return ct.CDLL(str(path))
    except OSError as error:
        raise LibraryError(f"{path} could not be loaded: {error}") from error


def _declare(library: Any, functions: dict[str, tuple[object, tuple[object, ...]]]) -> None:
    for name, (result, arguments) in functions.items():
        function = getattr(library, name, None)
        if function is None:
            raise LibraryError(f"the loaded llama.cpp has no function {name}")
        function.restype, function.argtypes = result, list(arguments)
