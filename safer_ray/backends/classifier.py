"""Which rules a prompt violates, and how surely: exemplars of the pack, its cues and its machine checks together.

A prompt is put in plain letters first. It is compared with the pack's own phrases and training prompts through a
sentence model (or characters, where that is not installed); a threshold per rule, set on exemplars held out from the
fit, decides whether any rule counts as violated. Where none does, the answer is R00.

Letters: N exemplars, M texts, R rules, C cue counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from safer_ray.backends.encoders import Encoder, EncoderName, find_encoder
from safer_ray.backends.pack_extras import read_cues, read_examples
from safer_ray.backends.resolver import FILE_NAME, Resolver, Substance, read_substances
from safer_ray.backends.rule_packs import lineage, pack_path, read_pack
from safer_ray.core.cues import CueBook, CueCounter
from safer_ray.core.exemplar_head import Array, Head, Labels, cosine_kernel, fit_head, radial_kernel, unit_rows
from safer_ray.core.normalise import Normalised, normalise
from safer_ray.core.rules import RuleHit, RulePack, check_text
from safer_ray.core.twins import twin_name
from safer_ray.core.wording import words_of
from safer_ray.errors import RulePackError
from safer_ray.records import NO_RULE

logger = logging.getLogger(__name__)
_FORMAT = 1
"""Raise this when a fitted head means something else, so that no kept one of the old kind is used."""
_UNSAFE_WIDTH, _TOPIC_WIDTH = 1.0, 0.5
_UNSAFE_CUES, _TOPIC_CUES = 0.2, 0.3
_CHECK_SCORE = 0.9
"""What a machine check that fires is worth; checks are written for answers and fire on no shipped safe prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplar:
    """A text of known standing: it violates ``rule_id``, or lies near it and is allowed; R00 is near nothing."""

    name: str
    text: str
    rule_id: str
    unsafe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """What the classifier says of one prompt.

    ``scores`` in [0, 1], per rule, the likeliest first; ``unsafe``: that any rule is violated. ``rule_id`` is the
    rule that passes its threshold by most, R00 if none does. ``nearest`` are the exemplars most like the prompt.
    ``substances`` are the listed ones it names, their spans in the prompt as given or, where they were hidden, in its
    plain text; ``substances_hash`` is that of the list, "" where the pack has none.
    """

    rule_id: str
    unsafe: float
    scores: Mapping[str, float]
    hits: tuple[RuleHit, ...]
    nearest: tuple[Exemplar, ...]
    normalised: Normalised
    substances: tuple[Substance, ...]
    encoder: str
    rule_pack_hash: str
    substances_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierSpec:
    """Builds a :class:`Classifier`.

    ``pack`` is a shipped name or a path. ``cache_dir`` keeps fitted heads; default: the user's cache directory.
    """

    pack: str = "default"
    encoder: EncoderName = "auto"
    cache_dir: str | None = None

    def build(self) -> Classifier:
        """Load the encoder and the fitted head; fit it on first use (26 s with the sentence model on a busy core).

        Raises:
            ModelError: if the sentence model is asked for and is not there.
            RulePackError: if the pack has no exemplars of both kinds.
        """
        pack, folder = read_pack(self.pack), pack_path(self.pack).parent
        encoder, cues = find_encoder(self.encoder), read_cues(folder, pack)
        exemplars = pack_exemplars(pack, read_examples(folder))
        fitted = _Fitted.kept(self._cache(), pack, encoder, cues, exemplars)
        lists = [path for file in lineage(self.pack) if (path := file.parent / FILE_NAME).is_file()]
        return Classifier(pack, encoder, fitted, exemplars, Resolver(read_substances(lists)))

    def _cache(self) -> Path:
        import platformdirs

        return Path(self.cache_dir) if self.cache_dir else platformdirs.user_cache_path("safer_ray") / "classifiers"


def pack_exemplars(pack: RulePack, examples: Sequence[Mapping[str, str]]) -> tuple[Exemplar, ...]:
    """Return the phrases of a pack and its training prompts as exemplars; prompts without a rule of it are R00."""
    found: list[Exemplar] = []
    for rule in pack.rules.values():
        sides = ((True, (*rule.intents, *rule.forbid)), (False, (*rule.near, *rule.allow, rule.near_miss)))
        for unsafe, phrases in sides:
            found += [Exemplar(name=text, text=text, rule_id=rule.rule_id, unsafe=unsafe) for text in phrases]
    for row in examples:
        rule_id = row["category"] if row["category"] in pack.rules else NO_RULE
        if row["label"] == "safe" or rule_id != NO_RULE:
            found.append(Exemplar(name=row["id"], text=row["plain"], rule_id=rule_id, unsafe=row["label"] == "unsafe"))
    return tuple(found)


class Classifier:
    """Scores prompts by the rules of one pack."""

    def __init__(
        self,
        pack: RulePack,
        encoder: Encoder,
        fitted: _Fitted,
        exemplars: Sequence[Exemplar],
        resolver: Resolver,
    ) -> None:
        self._pack = pack
        self._resolver = resolver
        self._encoder = encoder
        self._fitted = fitted
        self._exemplars = tuple(exemplars)
        self._vocabulary = frozenset(word for each in exemplars for word in words_of(each.text) if word.isalpha())

    @property
    def encoder(self) -> str:
        """Name and version of what turns prompts into vectors."""
        return self._encoder.name

    @property
    def thresholds(self) -> dict[str, float]:
        """The least score at which each rule counts as violated."""
        return dict(zip(self._pack.rules, self._fitted.head.threshold_R.tolist(), strict=True))

    def classify(self, texts: Sequence[str]) -> list[Classification]:
        """Return one classification per prompt; a prompt with a cipher in it is read whole and without its wrapping."""
        prepared = [self._plain(text) for text in texts]
        plain = [each for each, _ in prepared]
        readings = [(at, read) for at, each in enumerate(plain) for read in dict.fromkeys((each.text, each.asked))]
        if not readings:
            return []
        unsafe_M, score_MR, nearest_M = self._fitted.scores(self._encoder, [read for _, read in readings])
        found = []
        for at, each in enumerate(plain):
            rows = [row for row, (owner, _) in enumerate(readings) if owner == at]
            best = max(rows, key=lambda row: float(unsafe_M[row]))
            one = self._one(each, float(unsafe_M[best]), score_MR[best], nearest_M[best])
            found.append(replace(one, substances=prepared[at][1]))
        return found

    def _plain(self, text: str) -> tuple[Normalised, tuple[Substance, ...]]:
        """Return the prompt in plain letters and shared words, and the listed substances it names."""
        shared, named = self._resolver.plain(text)
        plain = normalise(shared, self._vocabulary)
        if not plain.decodings:
            return plain, tuple(named)
        written, hidden = self._resolver.plain(plain.text)
        asked, _ = self._resolver.plain(plain.asked)
        return replace(plain, text=written, asked=asked), (*named, *hidden)

    def _one(self, plain: Normalised, unsafe: float, score_R: Array, nearest: NDArray[np.int64]) -> Classification:
        hits = tuple(check_text(self._pack, plain.text, "response"))
        scores = dict(zip(self._pack.rules, score_R.tolist(), strict=True))
        for hit in hits:
            scores[hit.rule_id] = max(scores[hit.rule_id], _CHECK_SCORE)
        thresholds = self.thresholds
        best = max(scores, key=lambda rule_id: scores[rule_id] / thresholds[rule_id])
        return Classification(
            rule_id=best if scores[best] >= thresholds[best] else NO_RULE,
            unsafe=max(unsafe, _CHECK_SCORE) if hits else unsafe,
            scores=dict(sorted(scores.items(), key=lambda item: -item[1])),
            hits=hits,
            nearest=tuple(self._exemplars[at] for at in nearest),
            normalised=plain,
            substances=(),
            encoder=self._encoder.name,
            rule_pack_hash=self._pack.content_hash,
            substances_hash=self._resolver.list_hash,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    """A head, and the features of the exemplars it weighs."""

    head: Head
    vectors_NLD: NDArray[np.float32]
    cues_NC: Array
    mean_LD: NDArray[np.float32]
    scale_LD: NDArray[np.float32]
    counter: CueCounter

    @staticmethod
    def kept(folder: Path, pack: RulePack, encoder: Encoder, cues: CueBook, exemplars: Sequence[Exemplar]) -> _Fitted:
        """Return the fitted head for just this pack, encoder and exemplars: the kept one, or a new one, then kept."""
        content = [_FORMAT, pack.content_hash, encoder.name, encoder.fingerprint, sorted(cues.phrases.items())]
        content += [[each.name, each.text, each.rule_id, each.unsafe] for each in exemplars]
        path = folder / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}.npz"
        counter = CueCounter([(rule.intents, rule.near) for rule in pack.rules.values()], cues.phrases)
        if path.is_file():
            try:
                return _loaded(path, counter)
            except (OSError, ValueError, KeyError, BadZipFile) as exc:
                logger.warning("classifier: fitting again, because %s cannot be read: %s", path, exc)
        fitted = _fitted(pack, encoder, counter, exemplars)
        _keep(fitted, path)
        return fitted

    def scores(self, encoder: Encoder, texts: Sequence[str]) -> tuple[Array, Array, NDArray[np.int64]]:
        """Return (unsafe [M], rules [M, R], the places of the three nearest exemplars [M, 3])."""
        vectors = _transformed(encoder.layers(texts), self.mean_LD, self.scale_LD)
        unsafe_MN, topic_MN = _kernels(encoder, vectors, self.vectors_NLD, _counts(self.counter, texts), self.cues_NC)
        unsafe_M, score_MR = self.head.scores(unsafe_MN, topic_MN)
        return unsafe_M, score_MR, np.argsort(-topic_MN, axis=1)[:, :3]


def _fitted(pack: RulePack, encoder: Encoder, counter: CueCounter, exemplars: Sequence[Exemplar]) -> _Fitted:
    texts = [each.text for each in exemplars]
    raw = encoder.layers(texts)
    mean, scale = raw.mean(axis=0), raw.std(axis=0) + 1e-6
    if not encoder.standardised:
        mean, scale = np.zeros_like(mean), np.ones_like(scale)
    # half precision is what is kept, so fit on what a later run will read
    vectors = _transformed(raw, mean, scale).astype(np.float16).astype(np.float32)
    counts = _counts(counter, texts)
    order = {rule_id: place for place, rule_id in enumerate(pack.rules)}
    twins = [twin_name(each.name) for each in exemplars]
    places = {name: place for place, name in enumerate(dict.fromkeys(twins))}
    labels = Labels(
        rule_N=np.array([order.get(each.rule_id, -1) for each in exemplars]),
        unsafe_N=np.array([float(each.unsafe) for each in exemplars]),
        group_N=np.array([places[name] for name in twins]),
    )
    unsafe_NN, topic_NN = _kernels(encoder, vectors, vectors, counts, counts)
    try:
        head = fit_head(unsafe_NN, topic_NN, labels, len(pack.rules))
    except ValueError as exc:
        raise RulePackError(f"rule pack {pack.name}: {exc}; add prompts or phrases of the other kind") from exc
    return _Fitted(head=head, vectors_NLD=vectors, cues_NC=counts, mean_LD=mean, scale_LD=scale, counter=counter)


def _transformed(
    raw: NDArray[np.float32], mean: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return standardised layers, each row of each layer of length 1."""
    moved = (raw - mean) / scale
    norms = np.linalg.norm(moved, axis=2, keepdims=True)
    return np.asarray(moved / np.where(norms > 0, norms, 1.0), dtype=np.float32)


def _counts(counter: CueCounter, texts: Sequence[str]) -> Array:
    """Return the square roots of the cue counts, ``[M, 2 R]``: intents, then near phrases."""
    counts = [[*intents, *near] for intents, near in map(counter.count, texts)]
    return np.asarray(np.sqrt(np.array(counts, dtype=float)))


def _kernels(
    encoder: Encoder,
    left_MLD: NDArray[np.float32],
    right_NLD: NDArray[np.float32],
    left_MC: Array,
    right_NC: Array,
) -> tuple[Array, Array]:
    """Return the kernels ``[M, N]`` for "is any rule violated" and for "which one"."""
    found = []
    for first, width, cues in (
        (encoder.unsafe_from, _UNSAFE_WIDTH, _sided),
        (encoder.topic_from, _TOPIC_WIDTH, lambda counts: counts),
    ):
        left, right = (
            unit_rows(each[:, first:].reshape(len(each), -1).astype(float)) for each in (left_MLD, right_NLD)
        )
        weight = _UNSAFE_CUES if cues is _sided else _TOPIC_CUES
        found.append(radial_kernel(left, right, width) + weight * cosine_kernel(cues(left_MC), cues(right_NC)))
    return found[0], found[1]


def _sided(counts: Array) -> Array:
    """Append by how much the best intent is ahead of the best near phrase."""
    intents, near = np.split(counts, 2, axis=1)
    return np.concatenate([counts, intents.max(axis=1, keepdims=True) - near.max(axis=1, keepdims=True)], axis=1)


def _keep(fitted: _Fitted, path: Path) -> None:
    """Write the arrays as .npz, whole or not at all; a cache that cannot be written is done without."""
    head = fitted.head
    arrays: dict[str, Any] = {
        "vectors_NLD": fitted.vectors_NLD.astype(np.float16),
        "cues_NC": fitted.cues_NC,
        "mean_LD": fitted.mean_LD,
        "scale_LD": fitted.scale_LD,
        "unsafe_N": head.unsafe_N,
        "rule_NR": head.rule_NR,
        "threshold_R": head.threshold_R,
        "scalars": np.array([head.base_rate, head.slope, head.offset, head.temperature]),
    }
    partial = path.with_suffix(f".{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, allow_pickle=False, **arrays)
        partial.replace(path)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        logger.warning("classifier: the fitted head is not kept, because %s cannot be written: %s", path, exc)


def _loaded(path: Path, counter: CueCounter) -> _Fitted:
    with np.load(path, allow_pickle=False) as kept:
        base_rate, slope, offset, temperature = kept["scalars"].tolist()
        head = Head(
            unsafe_N=kept["unsafe_N"],
            rule_NR=kept["rule_NR"],
            base_rate=base_rate,
            slope=slope,
            offset=offset,
            temperature=temperature,
            threshold_R=kept["threshold_R"],
        )
        vectors = kept["vectors_NLD"].astype(np.float32)
        cues, mean, scale = kept["cues_NC"], kept["mean_LD"], kept["scale_LD"]
    return _Fitted(head=head, vectors_NLD=vectors, cues_NC=cues, mean_LD=mean, scale_LD=scale, counter=counter)
