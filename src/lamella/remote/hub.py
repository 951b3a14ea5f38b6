"""GGUF files from the Hugging Face Hub, with the Hub's own client (extra ``hub``).

    report = pull_from_hub(HubSource.parse("hf:OWNER/REPO/model.Q8_0.gguf"), Path("models"))

The client resumes broken downloads and knows tokens (``hf auth login``, HF_TOKEN), mirrors (HF_ENDPOINT) and proxies.
This module decides which files are meant, and compares their SHA-256 with what the Hub says of large files.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from lamella.core.errors import InvalidRequest, LamellaError, RemoteFailed, RemoteInvalid
from lamella.remote.conversion import Converter
from lamella.resources.homes import HUB_PREFIX
from lamella.store.files import pieces

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MODEL_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""What the converter reads of a repository: weights, configuration, tokenizer, chat template."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """What was asked for.

    Attributes:
        repository: ``OWNER/REPO``.
        file: path inside it, or "" for its only model.
    """

    repository: str
    file: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """``hf:OWNER/REPO`` or ``hf:OWNER/REPO/FILE``.

        Raises:
            InvalidRequest: neither.
        """
        parts = text.removeprefix(HUB_PREFIX).split("/")
        repository, file = "/".join(parts[:2]), "/".join(parts[2:])
        if not _REPOSITORY.fullmatch(repository):
            raise InvalidRequest(f"'{text}' names no repository; write hf:OWNER/REPO or hf:OWNER/REPO/FILE.gguf")
        return cls(repository, file)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository.

    Attributes:
        n_bytes: 0 where the Hub does not say.
        sha256: of a large file; "" for small ones, which the Hub keeps otherwise.
    """

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class HubReport:
    """What was fetched.

    Attributes:
        path: the model; of a split one, its first part.
        n_files, n_bytes: of all files that belong to it, whether they had to be moved or were there already.
        converted: whether it was made of safetensors.
    """

    path: Path
    n_files: int
    n_bytes: int
    converted: bool
    seconds: float


def pull_from_hub(
    source: HubSource,
    folder: Path,
    *,
    converter: Converter | None = None,
    endpoint: str | None = None,
    quiet: bool = False,
) -> HubReport:
    """Fetch a model into a folder; files that are there already are not moved again.

    Args:
        converter: for repositories of safetensors.
        endpoint: URL of the Hub; None: HF_ENDPOINT, or huggingface.co.
        quiet: no progress bars on the error stream.

    Raises:
        InvalidRequest: the extra is missing, or it is not clear which file is meant.
        RemoteFailed: the Hub was not reached, or refused.
        RemoteInvalid: a file is not what the Hub says it is, or has a name that leads out of the folder.
    """
    started = time.perf_counter()
    files = _files(source, endpoint)
    wanted, converted = choose(source, files), False
    if not wanted:
        converter = converter or Converter(None)
        converter.check()
        wanted, converted = [file for file in files if file.name.endswith(_MODEL_SUFFIXES)], True
    paths = [_fetch(source, file, folder, endpoint, quiet) for file in wanted]
    path = converter.convert(folder, source.repository.partition("/")[2]) if converter and converted else paths[0]
    n_bytes = sum(path.stat().st_size for path in paths)
    return HubReport(path, len(paths), n_bytes, converted, time.perf_counter() - started)


def choose(source: HubSource, files: Sequence[HubFile]) -> list[HubFile]:
    """The GGUF files that are meant, of a split model all parts in order; none where safetensors must be converted.

    Raises:
        InvalidRequest: the file is not there, there are several models, or none at all; lists what there is.
        RemoteInvalid: parts of a split model are missing.
    """
    models: dict[str, list[HubFile]] = {}
    for file in sorted(files, key=lambda f: f.name):
        if file.name.endswith(".gguf"):
            part = _PART.fullmatch(file.name)
            models.setdefault(f"{part.group(1)}-of-{part.group(3)}" if part else file.name, []).append(file)
    found = [group for group in models.values() if not source.file or any(f.name == source.file for f in group)]
    if len(found) == 1:
        return _whole(found[0])
    if not models and not source.file and any(f.name.endswith(".safetensors") for f in files):
        return []
    there = ", ".join(group[0].name for group in models.values()) or "none"
    if source.file:
        raise InvalidRequest(f"{source.repository} has no GGUF file '{source.file}'; there are: {there}")
    if not models:
        raise InvalidRequest(f"{source.repository} has neither GGUF files nor safetensors")
    first = next(iter(models.values()))[0].name
    raise InvalidRequest(
        f"{source.repository} has {len(models)} models; name one, such as "
        f"{HUB_PREFIX}{source.repository}/{first}: {there}"
    )


def _whole(group: list[HubFile]) -> list[HubFile]:
    part = _PART.fullmatch(group[0].name)
    if part and len(group) != int(part.group(3)):
        raise RemoteInvalid(f"{group[0].name} is one of {int(part.group(3))} parts, of which {len(group)} are there")
    return group


def _files(source: HubSource, endpoint: str | None) -> list[HubFile]:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InvalidRequest("the client of the Hugging Face Hub is not installed: pip install 'lamella[hub]'")
    from huggingface_hub import HfApi

    with _hub_errors(source):
        info = HfApi(endpoint=endpoint).model_info(source.repository, files_metadata=True)
    return [_file(entry) for entry in info.siblings or ()]


def _file(entry: object) -> HubFile:
    """One of the Hub's entries; names that lead out of the folder are refused."""
    name, lfs = str(getattr(entry, "rfilename", "")), getattr(entry, "lfs", None)
    path = PurePosixPath(name)
    if not name.isprintable() or path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name:
        raise RemoteInvalid(f"the Hub names a file {name!r}, which leads out of the folder")
    sha256 = lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)
    return HubFile(name, int(getattr(entry, "size", None) or 0), str(sha256 or ""))


def _fetch(source: HubSource, file: HubFile, folder: Path, endpoint: str | None, quiet: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    (disable_progress_bars if quiet else enable_progress_bars)()
    with _hub_errors(source):
        path = Path(hf_hub_download(source.repository, file.name, local_dir=folder, endpoint=endpoint))
    if file.sha256 and (found := _sha256(path)) != file.sha256:
        path.unlink()
        raise RemoteInvalid(f"{file.name} of {source.repository} has SHA-256 {found}; the Hub says {file.sha256}")
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for piece in pieces(path):
        digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def _hub_errors(source: HubSource) -> Iterator[None]:
    """The client raises errors of its own, of its HTTP library and of Python; all of them mean that it did not work."""
    try:
        yield
    except LamellaError:
        raise
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise RemoteFailed(f"hf:{source.repository}: {type(error).__name__}: {first_line}") from error
