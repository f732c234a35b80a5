"""Which of the written traces are trained on: filters in a fixed order, each counted.

    decontaminate -> near duplicates -> balance

Every filter is a pure function of the traces, their prompts and a seed; what it keeps stays in order.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from safer_ray.core.minhash import first_of_each
from safer_ray.core.neardup import word_runs
from safer_ray.records import NO_RULE, Prompt, TraceExample

RUN_WORDS = 13
"""A shared run of so many words is contamination: the length in use since GPT-3's decontamination."""
Balance = Literal["none", "labels", "labels_by_form"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterCount:
    """What one filter took in and let through, in traces; ``kept_unsafe`` and ``kept_safe`` add up to ``kept``."""

    name: str
    given: int
    kept: int
    kept_unsafe: int
    kept_safe: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curation:
    """How written traces are filtered before they are trained on; the defaults keep every one.

    ``banned_runs`` are the runs of ``RUN_WORDS`` words of evaluation sets; a trace that holds one is left out, whatever
    step it stands in. ``max_jaccard`` 1.0 keeps near duplicates; below it, of traces alike by that share of their
    character 5-grams only the first is kept.
    """

    balance: Balance = "none"
    max_jaccard: float = 1.0
    banned_runs: frozenset[str] = frozenset()
    seed: int = 0

    @property
    def filters(self) -> bool:
        """Whether anything may be left out."""
        return self.balance != "none" or self.max_jaccard < 1.0 or bool(self.banned_runs)


def curate(
    examples: Sequence[TraceExample], prompts: Mapping[str, Prompt], curation: Curation
) -> tuple[list[TraceExample], list[FilterCount]]:
    """Return the traces to train on, in order, and what each filter in use left of them.

    ``prompts`` are keyed by id and hold the prompt of every trace.
    """
    kept, counts = list(examples), list[FilterCount]()

    def note(name: str, left: list[TraceExample]) -> None:
        nonlocal kept
        counts.append(_count(name, len(kept), left, prompts))
        kept = left

    if curation.banned_runs:
        clean = [each for each in kept if not word_runs(_text(each), RUN_WORDS) & curation.banned_runs]
        note(f"decontaminate {RUN_WORDS}-grams", clean)
    if curation.max_jaccard < 1.0:
        first = first_of_each([_text(each) for each in kept], max_jaccard=curation.max_jaccard)
        note(f"near duplicates from {curation.max_jaccard:g}", [kept[at] for at in first])
    if curation.balance != "none":
        note(
            f"balance {curation.balance}",
            balance_traces(kept, prompts, by=curation.balance, seed=curation.seed),
        )
    return kept, counts


def _text(example: TraceExample) -> str:
    return "".join(step.text for step in example.steps)


def balance_traces(
    examples: Sequence[TraceExample], prompts: Mapping[str, Prompt], *, by: Balance, seed: int
) -> list[TraceExample]:
    """Cut the larger class (unsafe, or anything else) to the smaller one, spread evenly over categories.

    ``labels_by_form`` does so within every form, so that the form of a prompt says nothing about its label:
    a form that only one class has is left out whole. Order is kept; the same seed keeps the same traces.
    """
    if by == "none":
        return list(examples)
    groups: dict[str, tuple[list[int], list[int]]] = {}
    for at, example in enumerate(examples):
        prompt = prompts[example.prompt_id]
        unsafe, other = groups.setdefault(prompt.form if by == "labels_by_form" else "", ([], []))
        (unsafe if prompt.label == "unsafe" else other).append(at)
    kept: set[int] = set()
    for sides in groups.values():
        fewest = min(map(len, sides))
        for side in sides:
            kept |= set(_spread(side, [prompts[examples[at].prompt_id].category for at in side], fewest, seed))
    return [example for at, example in enumerate(examples) if at in kept]


def _spread(positions: Sequence[int], categories: Sequence[str], limit: int, seed: int) -> list[int]:
    """Return ``limit`` positions, taken from the categories in turn."""
    rng = random.Random(seed)
    groups: dict[str, list[int]] = {}
    for position, category in zip(positions, categories, strict=True):
        groups.setdefault(category, []).append(position)
    turns: list[tuple[int, str, int]] = []
    for category in sorted(groups, key=lambda name: (name == NO_RULE, name)):
        rng.shuffle(groups[category])
        turns += [(turn, category, position) for turn, position in enumerate(groups[category])]
    turns.sort(key=lambda entry: entry[0])  # stable: within a turn, categories stay in their order
    return [position for _, _, position in turns[:limit]]


def _count(name: str, given: int, kept: Sequence[TraceExample], prompts: Mapping[str, Prompt]) -> FilterCount:
    unsafe = sum(prompts[example.prompt_id].label == "unsafe" for example in kept)
    return FilterCount(name=name, given=given, kept=len(kept), kept_unsafe=unsafe, kept_safe=len(kept) - unsafe)
