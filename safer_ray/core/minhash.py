"""Near-duplicate texts among many, by MinHash: cost grows with the texts, not with their pairs.

Letters: N texts, P permutations, B bands.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from safer_ray.core.neardup import jaccard, shingles

_PERMUTATIONS = 96
_BANDS = 24
"""96 hashes in 24 bands of 4: texts alike by 0.8 share a band with chance 0.999994, those alike by 0.3 with 0.18."""
_PRIME = (1 << 61) - 1
_SEED = 20260101


def signatures(texts: Sequence[str], n: int = 5) -> npt.NDArray[np.uint64]:
    """Return MinHash signatures ``[N, P]`` of the character ``n``-grams of each text.

    The share of equal places in two rows estimates how much of their shingles two texts have in common.
    Source: Broder 1997.
    """
    rng = np.random.default_rng(_SEED)
    scale = rng.integers(1, _PRIME, _PERMUTATIONS, dtype=np.uint64)
    shift = rng.integers(0, _PRIME, _PERMUTATIONS, dtype=np.uint64)
    rows = np.empty((len(texts), _PERMUTATIONS), dtype=np.uint64)
    for at, text in enumerate(texts):
        hashed = np.array([_hash(gram) for gram in sorted(shingles(text, n))], dtype=np.uint64)
        # Multiplication wraps at 2^64: an odd multiplier permutes, which is all a min-hash needs.
        rows[at] = (hashed[:, None] * (scale | np.uint64(1)) + shift).min(axis=0)
    return rows


def _hash(gram: str) -> int:
    return int.from_bytes(hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def first_of_each(texts: Sequence[str], *, max_jaccard: float = 0.8) -> list[int]:
    """Return the positions of texts that are not nearly the same as an earlier one that was kept.

    Candidates come from MinHash bands; whether two are alike is then computed exactly.

    Raises:
        ValueError: if ``max_jaccard`` is not in (0, 1].
    """
    if not 0.0 < max_jaccard <= 1.0:
        raise ValueError(f"near duplicates: max_jaccard must be in (0, 1], got {max_jaccard}")
    rows = signatures(texts) if texts else np.empty((0, _PERMUTATIONS), dtype=np.uint64)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    kept: list[int] = []
    grams = {}
    for at, row in enumerate(rows):
        keys = [(band, part.tobytes()) for band, part in enumerate(np.split(row, _BANDS))]
        near = {other for key in keys for other in buckets.get(key, ())}
        grams[at] = shingles(texts[at])
        if any(jaccard(grams[at], grams[other]) >= max_jaccard for other in sorted(near)):
            del grams[at]
            continue
        kept.append(at)
        for key in keys:
            buckets[key].append(at)
    return kept
