"""Keeping evaluation sets out of the training data: which train prompts are, or hold, a prompt that is tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safer_ray.core.curation import RUN_WORDS
from safer_ray.core.neardup import near_duplicates, word_runs
from safer_ray.records import Prompt

_MAX_JACCARD = 0.8
"""Prompts this alike are the same question in nearly the same words; short ones have no run of 13 words to share."""


Finder = Callable[[Sequence[str], Sequence[str]], Sequence[int]]
"""Returns which of the first texts, by position, say the same as one of the second in other words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decontaminated:
    """Prompts without those to train on that stand in an evaluation set, and how many were left out, by reason."""

    prompts: tuple[Prompt, ...]
    dropped: dict[str, int]


def decontaminate(
    prompts: Sequence[Prompt], evaluation_texts: Sequence[str], paraphrases: Finder | None = None
) -> Decontaminated:
    """Leave out train prompts that share a run of 13 words with an evaluation text or are nearly the same.

    With ``paraphrases`` those are left out, too, that it finds. Prompts of the test split are kept: they are not
    trained on.
    """
    train = [prompt for prompt in prompts if prompt.split != "test"]
    texts = ["\n".join(turn.content for turn in prompt.messages) for prompt in train]
    found = near_duplicates(texts, evaluation_texts, max_jaccard=_MAX_JACCARD, run_words=RUN_WORDS)
    reasons = {train[each.left].prompt_id: f"{RUN_WORDS}-gram" if each.run else "near copy" for each in found}
    if paraphrases is not None and evaluation_texts:
        for at in paraphrases(texts, evaluation_texts):
            reasons.setdefault(train[at].prompt_id, "paraphrase")
    return Decontaminated(
        prompts=tuple(prompt for prompt in prompts if prompt.prompt_id not in reasons),
        dropped=dict(sorted(Counter(reasons.values()).items())),
    )


def banned_runs(evaluation_texts: Sequence[str]) -> frozenset[str]:
    """Return every run of 13 words of the evaluation texts."""
    return frozenset(run for text in evaluation_texts for run in word_runs(text, RUN_WORDS))
