"""GGUF files: read headers with ggml's own parser, write headers of shards.

Reading through ``gguf_init_from_file`` means that what Lamella accepts is what llama.cpp accepts.  Only headers pass
through here; tensor data is read and written by byte range elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.core.closing import Closing
from lamella.core.errors import ModelError, NotGguf, TruncatedModel, UnsupportedTensor
from lamella.core.input_files import check_file
from lamella.core.model import ModelIdentity, ModelSpec, TensorSpec
from lamella.core.precision import GGML_TYPES, GGML_TYPES_BY_CODE
from lamella.llama import api, library, log

ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT; shards always use it
MOST_LAYERS = 4096  # llama.cpp has room for 512 (LLAMA_MAX_LAYERS); everything here that goes by layer ends at this
SAMPLE_BYTES = 4096  # read from each end of each tensor for the identity of the weights

_SCALARS: dict[int, Any] = {
    0: ct.c_uint8, 1: ct.c_int8, 2: ct.c_uint16, 3: ct.c_int16, 4: ct.c_uint32, 5: ct.c_int32,
    6: ct.c_float, 7: ct.c_bool, 10: ct.c_uint64, 11: ct.c_int64, 12: ct.c_double,
}  # fmt: skip
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_FILE_KEYS = ("general.file_type", "general.alignment", "general.quantization_version")
_FILE_PREFIXES = ("split.", "quantize.", "lamella.")

Scalar = int | float | str | bool


@dataclass(frozen=True, slots=True)
class TensorData:
    """Where a tensor's bytes are: ``n_bytes`` at ``offset`` of ``path``."""

    spec: TensorSpec
    path: Path
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A readable model: one GGUF file, or all files of a split one.

    Attributes:
        paths: the files, in split order.
        spec: structure and identity.
        tensors: by name, in file order.
        metadata: the scalar metadata of the first file.
        description: SHA-256 over the rest of what its metadata says of the model: chat template, name, license; the
            structure has a hash of its own.
    """

    paths: tuple[Path, ...]
    spec: ModelSpec
    tensors: Mapping[str, TensorData]
    metadata: Mapping[str, Scalar]
    description: str


class Header(Closing):
    """An open ``gguf_context``.  Owns it; use as a context manager or call ``close()``."""

    def __init__(self, address: int, path: Path | None = None) -> None:
        self._base = library.load().base
        self._path = path
        self.address = address

    @classmethod
    def open(cls, path: Path) -> Header:
        """Parse the header of ``path``.

        Raises:
            NotGguf: no GGUF file, or a header that ggml cannot parse.
            ModelError: the file cannot be opened.
        """
        check_magic(path)
        base = library.load().base
        log.forget_complaints()
        address = base.gguf_init_from_file(os.fsencode(path), api.GgufInitParams(True, None))
        if not address:
            raise NotGguf(f"{path}: the GGUF header is damaged or cut off ({log.complaints()})")
        return cls(address, path)

    @classmethod
    def empty(cls) -> Header:
        return cls(library.load().base.gguf_init_empty())

    def close(self) -> None:
        if self.address:
            self._base.gguf_free(self.address)
            self.address = 0

    def keys(self) -> Iterator[tuple[int, str]]:
        """Number and name of every key.

        Raises:
            NotGguf: a name is not UTF-8.
        """
        for i in range(self._base.gguf_get_n_kv(self.address)):
            yield i, self._name(self._base.gguf_get_key(self.address, i), "key")

    def scalar(self, key_id: int) -> Scalar | None:
        """The value, or None for arrays."""
        kind = self._base.gguf_get_kv_type(self.address, key_id)
        if kind == api.GGUF_TYPE_STRING:
            text: bytes = self._base.gguf_get_val_str(self.address, key_id)
            return text.decode("utf-8", "replace")
        if kind not in _SCALARS:
            return None
        data = self._base.gguf_get_val_data(self.address, key_id)
        value: Scalar = ct.cast(data, ct.POINTER(_SCALARS[kind])).contents.value
        return value

    def model_values(self) -> dict[str, Scalar]:
        """The values that describe the model and not this file of it, for comparing: of an array its SHA-256."""
        values: dict[str, Scalar] = {}
        for key_id, key in self.keys():
            if not describes_file(key):
                value = self.scalar(key_id)
                values[key] = hash_parts(self.array_bytes(key_id)) if value is None else value
        return values

    def array_bytes(self, key_id: int) -> Iterator[bytes]:
        """The contents of an array, for hashing: strings end with a zero byte, numbers stand as in memory."""
        kind = self._base.gguf_get_arr_type(self.address, key_id)
        n = self._base.gguf_get_arr_n(self.address, key_id)
        if kind == api.GGUF_TYPE_STRING:
            text, address = self._base.gguf_get_arr_str, self.address
            yield b"".join([text(address, key_id, i) + b"\0" for i in range(n)])
        elif kind in _SCALARS and n:
            yield ct.string_at(self._base.gguf_get_arr_data(self.address, key_id), n * ct.sizeof(_SCALARS[kind]))

    def get(self, key: str) -> Scalar | None:
        key_id = self._base.gguf_find_key(self.address, key.encode())
        return self.scalar(key_id) if key_id >= 0 else None

    def strings(self, key: str) -> list[str]:
        """The strings of an array; none where there is no such array."""
        key_id = self._base.gguf_find_key(self.address, key.encode())
        if key_id < 0 or self._base.gguf_get_kv_type(self.address, key_id) != api.GGUF_TYPE_ARRAY:
            return []
        if self._base.gguf_get_arr_type(self.address, key_id) != api.GGUF_TYPE_STRING:
            return []
        n = self._base.gguf_get_arr_n(self.address, key_id)
        return [self._base.gguf_get_arr_str(self.address, key_id, i).decode("utf-8", "replace") for i in range(n)]

    def tensors(self, path: Path) -> Iterator[TensorData]:
        """Every tensor of the file, checked to lie inside it.

        Raises:
            NotGguf: a name is not UTF-8.
            TruncatedModel: the file ends before a tensor does.
            UnsupportedTensor: a type that this version does not know, or no weights.
        """
        base, address = self._base, self.address
        data_offset, file_bytes = base.gguf_get_data_offset(address), path.stat().st_size
        for i in range(base.gguf_get_n_tensors(address)):
            name = self._name(base.gguf_get_tensor_name(address, i), "tensor name")
            code = base.gguf_get_tensor_type(address, i)
            if code not in GGML_TYPES_BY_CODE:
                raise UnsupportedTensor(f"{path}: tensor {name} has ggml type {code}, which Lamella cannot read")
            ne = list(base.gguf_get_tensor_ne(address, i)[: api.MAX_DIMS])
            if 0 in ne:
                raise UnsupportedTensor(f"{path}: tensor {name} has the shape {ne}, and so no weights")
            while len(ne) > 1 and ne[-1] == 1:
                ne.pop()
            offset = data_offset + base.gguf_get_tensor_offset(address, i)
            n_bytes = base.gguf_get_tensor_size(address, i)
            if offset + n_bytes > file_bytes:
                raise TruncatedModel(
                    f"{path} is cut off: tensor {name} ends at byte {offset + n_bytes}, the file has {file_bytes} bytes"
                )
            yield TensorData(TensorSpec(name, tuple(ne), GGML_TYPES_BY_CODE[code].name), path, offset, n_bytes)

    def _name(self, data: bytes, what: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise NotGguf(f"{self._path}: the GGUF header is damaged: {what} {data!r} is not UTF-8") from None

    def copy_metadata_from(self, other: Header) -> None:
        """Take over all key-value pairs that describe the model: what ``describes_file`` stays behind."""
        self._base.gguf_set_kv(self.address, other.address)
        left_out = [key for _, key in self.keys() if describes_file(key)]
        for key in left_out:
            self._base.gguf_remove_key(self.address, key.encode())

    def set(self, key: str, value: int | float | str, kind: str) -> None:
        """Set a value of GGUF type ``u16``, ``u32``, ``i32``, ``f32`` or ``str``."""
        encoded = value.encode() if isinstance(value, str) else value
        getattr(self._base, f"gguf_set_val_{kind}")(self.address, key.encode(), encoded)

    def set_strings(self, key: str, values: Sequence[str]) -> None:
        """Set an array of strings."""
        encoded = (ct.c_char_p * len(values))(*(value.encode() for value in values))
        self._base.gguf_set_arr_str(self.address, key.encode(), encoded, len(values))

    def serialise(self, tensors: Sequence[tuple[TensorSpec, str]]) -> bytes:
        """The header's bytes, padded to where tensor data starts.

        Args:
            tensors: (tensor, ggml type it is stored in), in the order their data will follow, each padded
                to ``ALIGNMENT``.
        """
        base = self._base
        scratch = base.ggml_init(api.InitParams((len(tensors) + 1) * (base.ggml_tensor_overhead() + 64), None, True))
        try:
            for spec, type_name in tensors:
                shape = (ct.c_int64 * len(spec.shape))(*spec.shape)
                tensor = base.ggml_new_tensor(scratch, GGML_TYPES[type_name].code, len(spec.shape), shape)
                base.ggml_set_name(tensor, spec.name.encode())
                base.gguf_add_tensor(self.address, tensor)
            buffer = ct.create_string_buffer(base.gguf_get_meta_size(self.address))
            base.gguf_get_meta_data(self.address, buffer)
            return buffer.raw
        finally:
            base.ggml_free(scratch)


def describes_file(key: str) -> bool:
    """Whether a key is about one file (types, splits, how it was made) and not about the model in it."""
    return key in _FILE_KEYS or key.startswith(_FILE_PREFIXES)


def padding(n_bytes: int) -> int:
    """Zero bytes that follow a tensor of ``n_bytes`` in a file."""
    return -n_bytes % ALIGNMENT


def check_magic(path: Path) -> None:
    """Refuse early what is certainly no GGUF file.

    Raises:
        NotGguf: the file does not start with the magic.
        ModelError: there is no such file, or it cannot be read.
    """
    try:
        check_file(path)
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise NotGguf(f"{path} is not a GGUF file: it starts with {magic!r}, not b'GGUF'")


def read_model(path: Path) -> ModelFile:
    """Read structure, identity and tensor positions of a model; no weights are loaded.

    Of a split model name any part; the others are found by llama.cpp's ``-00001-of-00003`` pattern.

    Raises:
        ModelError: and its subclasses; see ``Header``.
    """
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Header.open(path))
        n_split = first.get("split.count")
        paths = split_paths(path, n_split) if isinstance(n_split, int) and n_split > 1 else (path,)
        headers = [stack.enter_context(Header.open(p)) for p in paths]
        tensors = {t.spec.name: t for p, h in zip(paths, headers, strict=True) for t in h.tensors(p)}
        metadata = {k: v for i, k in headers[0].keys() if (v := headers[0].scalar(i)) is not None}
        architecture = str(metadata.get("general.architecture", ""))
        if not architecture or not tensors:
            raise ModelError(f"{path} holds no model: it has no {'architecture' if not architecture else 'tensors'}")
        structure = _structure_hash(headers[0], architecture, [t.spec for t in tensors.values()])
        description = _description_hash(headers[0], architecture)
    identity = ModelIdentity(
        architecture, str(metadata.get("general.name", path.stem)), structure, weights_hash(tensors.values())
    )
    hyper = {k.removeprefix(f"{architecture}."): v for k, v in metadata.items() if k.startswith(f"{architecture}.")}
    specs = tuple(t.spec for t in tensors.values())
    n_layers = _layer_count(path, architecture, hyper.get("block_count", 0), specs)
    return ModelFile(paths, ModelSpec(identity, n_layers, specs, hyper), tensors, metadata, description)


def read_tensors(path: Path) -> dict[str, TensorData]:
    """The tensors of one file, be it a whole model or a shard.

    Raises:
        ModelError: and its subclasses; see ``Header``.
    """
    with Header.open(path) as header:
        return {t.spec.name: t for t in header.tensors(path)}


def read_specs(paths: Iterable[Path]) -> dict[str, TensorSpec]:
    """The tensors of all parts of a model, by name.

    Raises:
        ModelError: and its subclasses; see ``Header``.
    """
    return {name: tensor.spec for path in paths for name, tensor in read_tensors(path).items()}


def read_structure(metadata_file: Path, tensors: Iterable[TensorSpec]) -> str:
    """``ModelIdentity.structure`` of a model whose metadata and tokenizer stand in one file, its tensors wherever.

    Raises:
        ModelError: and its subclasses; see ``Header``.
    """
    with Header.open(metadata_file) as header:
        return _structure_hash(header, str(header.get("general.architecture") or ""), tensors)


def split_paths(path: Path, n_split: int) -> tuple[Path, ...]:
    """All files of a split model, given one of them (``llama_split_path``).

    Raises:
        ModelError: the name does not follow the pattern, or a part is missing.
    """
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match.group(3)) != n_split:  # so a count is never believed that the name does not bound
        raise ModelError(f"{path} is one of {n_split} parts, but its name does not end in -00001-of-{n_split:05d}.gguf")
    paths = tuple(path.with_name(f"{match.group(1)}-{i:05d}-of-{n_split:05d}.gguf") for i in range(1, n_split + 1))
    missing = [p.name for p in paths if not p.exists()]
    if missing:
        raise ModelError(f"{path} is one of {n_split} parts, and {len(missing)} are missing: {', '.join(missing[:3])}")
    return paths


def _layer_count(path: Path, architecture: str, block_count: Scalar, tensors: Iterable[TensorSpec]) -> int:
    """``block_count``, if it is a count that a model can have and every tensor's layer is below it."""
    if type(block_count) is not int or not 0 <= block_count <= MOST_LAYERS:
        raise ModelError(
            f"{path}: {architecture}.block_count is {block_count!r}, which is no number of layers "
            f"(at most {MOST_LAYERS})"
        )
    for tensor in tensors:
        if tensor.layer is not None and tensor.layer >= block_count:
            raise ModelError(
                f"{path}: tensor {tensor.name} is of layer {tensor.layer}, "
                f"but the model has {block_count} layers ({architecture}.block_count)"
            )
    return block_count


def _structure_hash(header: Header, architecture: str, tensors: Iterable[TensorSpec]) -> str:
    values = _values(header, lambda key: is_structural(key, architecture))
    shapes = (f"{tensor.name} {tensor.shape}\0".encode() for tensor in sorted(tensors, key=lambda t: t.name))
    return hash_parts(itertools.chain(values, shapes))


def _description_hash(header: Header, architecture: str) -> str:
    return hash_parts(_values(header, lambda key: not is_structural(key, architecture) and not describes_file(key)))


def _values(header: Header, counts: Callable[[str], bool]) -> Iterator[bytes]:
    """Keys and values, for hashing: by name, because tools write them in different orders."""
    for key_id, key in sorted(header.keys(), key=lambda pair: pair[1]):
        if counts(key):
            yield key.encode() + b"\0"
            value = header.scalar(key_id)
            yield from header.array_bytes(key_id) if value is None else (repr(value).encode(),)


def is_structural(key: str, architecture: str) -> bool:
    """Whether a key is part of the model's structure: hyper-parameters and tokenizer."""
    return key.startswith((f"{architecture}.", "tokenizer.ggml."))


def weights_hash(tensors: Iterable[TensorData]) -> str:
    """``ModelIdentity.weights``: SHA-256 over name, type and samples of each tensor, in the order given."""
    digest = hashlib.sha256()
    by_path: dict[Path, list[TensorData]] = {}
    for tensor in tensors:
        by_path.setdefault(tensor.path, []).append(tensor)
    for path, members in by_path.items():
        with path.open("rb") as file:
            for tensor in members:
                digest.update(f"{tensor.spec.name} {tensor.spec.type_name}\0".encode())
                for start in (0, max(0, tensor.n_bytes - SAMPLE_BYTES)):
                    digest.update(os.pread(file.fileno(), min(SAMPLE_BYTES, tensor.n_bytes), tensor.offset + start))
    return digest.hexdigest()


def hash_parts(parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256 over all parts, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
