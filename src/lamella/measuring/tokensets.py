"""Top-k token sets of hidden states (LSAQ, section III.A), and how much two sets differ.

A hidden state x stands for the k tokens with the largest x W_E^T, where W_E is the token embedding (eq. 1 and 2); no
norm is applied first.  A layer that changes the set changed the meaning: I = 1 - J (eq. 3).

The embedding of a large vocabulary is too large as float32 (152 k x 1536 are 933 MB), so it is read by pieces: all
states meet one piece after the other and keep their best k so far.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InvalidRequest
from lamella.llama.gguf import ModelFile, TensorData
from lamella.measuring.progress import Count, ignore
from lamella.measuring.rows import read_rows

EMBEDDING = "token_embd.weight"
PIECE_BYTES = 32 * 1024**2  # of float32: embedding rows, and scores of all states


class BestTokens:
    """The best k tokens of each state, over all pieces seen so far.

    Equals a full sort by falling score, of equal scores the smaller token first.  Pieces come in rising token order.
    """

    def __init__(self, n_states: int, k: int) -> None:
        self._k = k
        self._scores = np.empty((n_states, 0), np.float32)
        self._tokens = np.empty((n_states, 0), np.int64)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Shape (states, k), best first."""
        return self._tokens

    def add(self, scores: NDArray[np.float32], first_token: int) -> None:
        """Take in scores of shape (states, piece) of the tokens ``first_token``, ``first_token + 1``, ..."""
        n_states, n_piece = scores.shape
        n_kept, k = self._tokens.shape[1], self._k
        if n_kept == k:  # later tokens must be better to enter, so few of a piece need sorting
            rows, columns = np.nonzero(scores > self._scores[:, -1:])
        elif n_piece > k:
            rows, columns = np.nonzero(scores >= np.partition(scores, n_piece - k, axis=1)[:, n_piece - k, None])
        else:
            rows, columns = np.nonzero(np.ones_like(scores, bool))
        all_rows = np.concatenate([np.repeat(np.arange(n_states), n_kept), rows])
        all_scores = np.concatenate([self._scores.ravel(), scores[rows, columns]])
        all_tokens = np.concatenate([self._tokens.ravel(), columns + first_token])
        order = np.lexsort((all_tokens, -all_scores, all_rows))
        starts = np.searchsorted(all_rows[order], np.arange(n_states))
        best = order[starts[:, None] + np.arange(min(k, n_kept + n_piece))]
        self._scores, self._tokens = all_scores[best], all_tokens[best]


def check_embedding(model_file: ModelFile, k: int) -> TensorData:
    """The token embedding that states are projected with.

    Raises:
        InvalidRequest: there is none, it has another width than the states, or fewer tokens than ``k``.
    """
    embedding = model_file.tensors.get(EMBEDDING)
    if embedding is None:
        raise InvalidRequest(f"metric jaccard needs the token embedding {EMBEDDING}, which {model_file.paths[0]} lacks")
    if not 1 <= k <= embedding.spec.n_rows:
        raise InvalidRequest(f"k must be between 1 and the {embedding.spec.n_rows} tokens of the vocabulary, not {k}")
    width = model_file.spec.hyperparameters.get("embedding_length", embedding.spec.row_length)
    if width != embedding.spec.row_length:
        raise InvalidRequest(
            f"metric jaccard cannot project states of width {width} with an embedding of {embedding.spec.row_length}"
        )
    return embedding


def top_tokens(
    states: NDArray[np.float32], embedding: TensorData, k: int, on_rows: Count = ignore
) -> NDArray[np.int64]:
    """The k tokens that each state stands for: shape (states, width) -> (states, k)."""
    best = BestTokens(len(states), k)
    n_rows = embedding.spec.n_rows
    step = max(1, PIECE_BYTES // (4 * max(embedding.spec.row_length, len(states))))
    for first in range(0, n_rows, step):
        rows = read_rows(embedding, first, min(step, n_rows - first))
        best.add(states @ rows.T, first)
        on_rows(first + len(rows))
    return best.tokens


def jaccard_distance(before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 - |A n B| / |A u B| of each pair of rows; within a row no token occurs twice."""
    k = before.shape[1]
    merged = np.sort(np.concatenate([before, after], axis=1), axis=1)
    common = (merged[:, 1:] == merged[:, :-1]).sum(axis=1)
    distances: NDArray[np.float64] = 1 - common / (2 * k - common)
    return distances


def layer_distances(
    last_states: NDArray[np.float32], embedding: TensorData, k: int, on_rows: Count = ignore
) -> NDArray[np.float64]:
    """LSAQ's importance of each layer for each sample: (samples, layers + 1, width) -> (samples, layers)."""
    n_samples, n_states, width = last_states.shape
    tokens = top_tokens(last_states.reshape(-1, width), embedding, k, on_rows).reshape(n_samples, n_states, k)
    before, after = tokens[:, :-1].reshape(-1, k), tokens[:, 1:].reshape(-1, k)
    return jaccard_distance(before, after).reshape(n_samples, n_states - 1)
