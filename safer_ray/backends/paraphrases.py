"""Texts that say the same in other words, by the sentence model of the classifier.

Letters: M, N texts, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safer_ray.backends.encoders import Encoder, find_encoder
from safer_ray.core.encode import plain_text

_BLOCK = 1024
"""Rows compared at once: the similarities of a million pairs take 4 MB."""


def find_paraphrases(
    left: Sequence[str], right: Sequence[str], *, at_least: float, encoder: Encoder | None = None
) -> list[int]:
    """Return the positions in ``left`` of texts whose cosine with some text of ``right`` is ``at_least`` or more.

    Encoded texts are compared in plain letters. Without ``encoder`` the sentence model is loaded.

    Raises:
        ModelError: if the sentence model is not installed.
    """
    if not left or not right:
        return []
    encoder = encoder or find_encoder("minilm")
    left_MD, right_ND = _vectors(encoder, left), _vectors(encoder, right)
    found: list[int] = []
    for start in range(0, len(left), _BLOCK):
        best_M = (left_MD[start : start + _BLOCK] @ right_ND.T).max(axis=1)
        found += [start + int(at) for at in np.flatnonzero(best_M >= at_least)]
    return found


def _vectors(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return unit vectors ``[M, D]`` of the last layer."""
    raw_MD = encoder.layers([plain_text(text) for text in texts])[:, -1]
    norms_M = np.linalg.norm(raw_MD, axis=1, keepdims=True)
    vectors: NDArray[np.float32] = raw_MD / np.where(norms_M > 0, norms_M, 1.0)
    return vectors
