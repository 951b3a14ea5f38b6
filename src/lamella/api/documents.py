"""Measurements, plans and importance matrices as files."""

from __future__ import annotations

from pathlib import Path

from lamella.api.models import look
from lamella.core.artifacts import (
    Measurement,
    Plan,
    from_json,
    to_json,
)
from lamella.core.errors import ArtifactError
from lamella.core.input_files import read_file
from lamella.llama.imatrix import ImportanceMatrix, read_imatrix, serialise_imatrix
from lamella.store.files import new_file


def read_measurement(path: Path) -> Measurement:
    """Read a measurement file.

    Raises:
        ArtifactError: it cannot be read, or is no measurement.
    """
    return from_json(Measurement, artifact_bytes(path), str(path))


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        ArtifactError: it cannot be read, or is no plan.
    """
    return from_json(Plan, artifact_bytes(path), str(path))


def write_artifact(artifact: Measurement | Plan, path: Path) -> None:
    """Write a document, whole or not at all.

    Raises:
        StorageFailed: the file system refused.
    """
    _write_whole(to_json(artifact), path)


def read_importance(path: Path) -> ImportanceMatrix:
    """Read an importance matrix, of Lamella or of llama-imatrix.

    Raises:
        ArtifactError: it cannot be read, or is none.
    """
    look(path, kind="importance")
    return read_imatrix(path)


def write_importance(matrix: ImportanceMatrix, path: Path) -> None:
    """Write an importance matrix as llama-imatrix does, whole or not at all.

    Raises:
        StorageFailed: the file system refused.
    """
    _write_whole(serialise_imatrix(matrix), path)


def _write_whole(data: bytes, path: Path) -> None:
    with new_file(path, len(data), replace=True) as file:
        file.write(data)


def artifact_bytes(path: Path) -> bytes:
    """A document as it lies on disk.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        return read_file(path)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error
