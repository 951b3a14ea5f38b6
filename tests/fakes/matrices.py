"""Importance matrices of random values, for models that need one but no particular one."""

from __future__ import annotations

import numpy as np

from lamella.core.model import ModelSpec
from lamella.llama.imatrix import ColumnSums, ImportanceMatrix


def make_matrix(spec: ModelSpec, *, seed: int = 0, layers_only: bool = True) -> ImportanceMatrix:
    """Sums over 100 inputs for every weight matrix (of the layers), each column another."""
    random = np.random.default_rng(seed)
    wanted = [t for t in spec.tensors if t.is_matrix and (t.layer is not None or not layers_only)]
    sums = {
        t.name: ColumnSums(random.exponential(50, (1, t.row_length)).astype(np.float32), np.array([100]))
        for t in wanted
    }
    return ImportanceMatrix(sums, ("random",), 1, 100, spec.identity.structure)
