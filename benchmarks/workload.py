"""The work every learner benchmark does: pairs of random tokens in the shapes that SAFER's trees have.

What the tokens say changes no time; that both sides get the same ones does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random

from safer_ray.backends.base import TeachTask
from safer_ray.config import PromptsConfig
from safer_ray.prompts import load_prompts
from safer_ray.records import STEP_KINDS, Lineage, Prompt, StepPair, TraceExample
from safer_ray.tables import to_table, write_table

MODEL = "embedded:smollm2-135m"
VOCABULARY = range(1000, 40000)
"""Ordinary tokens of the embedded model."""
LINEAGE = Lineage(
    judge="bench@1", rule_pack_hash="", sampler="bench", temperature=1.0, top_p=1.0, reference="fixed", round=0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Trees of ``prompts`` prompts: ``steps`` levels of ``siblings``, one of which is continued.

    All pairs of siblings are valid. Lengths are in tokens.
    """

    prompts: int
    prompt_tokens: int = 400
    step_tokens: int = 60
    siblings: int = 2
    steps: int = 1

    @property
    def pairs(self) -> int:
        """How many pairs all trees have."""
        return self.prompts * self.steps * self.siblings * (self.siblings - 1) // 2


def make_pairs(shape: Shape, *, seed: int = 0) -> list[StepPair]:
    """Return the pairs of all trees."""
    rng = Random(seed)

    def draw(tokens: int) -> tuple[int, ...]:
        return tuple(rng.choice(VOCABULARY) for _ in range(tokens))

    pairs: list[StepPair] = []
    for prompt in range(shape.prompts):
        prompt_ids, prefix = draw(shape.prompt_tokens), ()
        for level in range(shape.steps):
            siblings = [draw(shape.step_tokens) for _ in range(shape.siblings)]
            for chosen, rejected in combinations(siblings, 2):
                pairs.append(
                    StepPair(
                        pair_id=f"{len(pairs):06d}",
                        prompt_id=f"p{prompt}",
                        step_index=level,
                        step_kind=STEP_KINDS[level],
                        axis="safety",
                        prompt_ids=prompt_ids,
                        prefix_ids=prefix,
                        chosen_ids=chosen,
                        rejected_ids=rejected,
                        chosen_text="",
                        rejected_text="",
                        margin=0.5,
                        policy_version=0,
                        lineage=LINEAGE,
                    )
                )
            prefix = (*prefix, *siblings[0])
    return pairs


def write_pairs(shape: Shape, path: Path) -> int:
    """Write the ``pairs/1`` table; return the tokens a trainer without sharing computes."""
    pairs = make_pairs(shape)
    write_table(to_table(pairs, StepPair), path)
    return sum(2 * (len(p.prompt_ids) + len(p.prefix_ids)) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)


def shipped_prompts(count: int) -> list[Prompt]:
    """Return unsafe and safe shipped prompts, mixed; what no model is ever sampled on is left out."""
    config = PromptsConfig()
    prompts = [
        prompt
        for prompt in load_prompts(config.sources, config.max_bad_share).prompts
        if prompt.category not in config.never_sample
    ]
    Random(0).shuffle(prompts)
    return prompts[:count]


def real_traces(count: int) -> list[TraceExample]:
    """Return traces of the template teacher on shipped prompts: the length mix SFT really has."""
    from safer_ray.backends.template_teacher import TemplateTeacherSpec

    teacher = TemplateTeacherSpec(pack="default", model=MODEL).build()
    found = teacher.teach([TeachTask(prompt=prompt) for prompt in shipped_prompts(8 * count)]).examples
    assert len(found) >= count, f"{len(found)} traces written, {count} wanted"
    return list(found[:count])
