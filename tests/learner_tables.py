"""Tables of random tokens for learners: what they say does not matter, only that every run sees the same."""

from __future__ import annotations

from pathlib import Path
from random import Random

from safer_ray.records import AXES, STEP_KINDS, Lineage, Step, StepPair, TraceExample
from safer_ray.tables import to_table, write_table

LINEAGE = Lineage(judge="j@1", rule_pack_hash="h", sampler="s", temperature=1.0, top_p=1.0, reference="fixed", round=0)


def _ids(rng: Random, tokens: int) -> tuple[int, ...]:
    return tuple(rng.randrange(5, 300) for _ in range(tokens))


def random_examples(rows: int, *, seed: int = 0) -> list[TraceExample]:
    """Traces of 10 to 40 tokens after prompts of 4 to 12."""
    rng = Random(seed)
    examples = []
    for row in range(rows):
        completion = _ids(rng, rng.randrange(10, 40))
        examples.append(
            TraceExample(
                example_id=f"e{row}",
                prompt_id=f"p{row}",
                prompt_ids=_ids(rng, rng.randrange(4, 12)),
                completion_ids=completion,
                steps=(Step(kind="response", start=0, stop=len(completion), text="x"),),
                teacher="random@1",
            )
        )
    return examples


def random_pairs(prompts: int, *, seed: int = 0) -> list[StepPair]:
    """Per prompt two steps deep, two pairs at each step, on all axes."""
    rng = Random(seed)
    pairs: list[StepPair] = []
    for prompt in range(prompts):
        prompt_ids, prefix = _ids(rng, rng.randrange(4, 12)), ()
        for depth in range(2):
            chosen = _ids(rng, rng.randrange(4, 10))
            for _ in range(2):
                pairs.append(
                    StepPair(
                        pair_id=f"{len(pairs)}",
                        prompt_id=f"p{prompt}",
                        step_index=depth,
                        step_kind=STEP_KINDS[depth],
                        axis=AXES[len(pairs) % 3],
                        prompt_ids=prompt_ids,
                        prefix_ids=prefix,
                        chosen_ids=chosen,
                        rejected_ids=_ids(rng, rng.randrange(4, 16)),
                        chosen_text="w",
                        rejected_text="l",
                        margin=0.5,
                        policy_version=0,
                        lineage=LINEAGE,
                    )
                )
            prefix = (*prefix, *chosen)
    return pairs


def write_examples(path: Path, rows: int = 12) -> Path:
    """Write a ``traces/1`` table."""
    write_table(to_table(random_examples(rows), TraceExample), path)
    return path


def write_pairs(path: Path, prompts: int = 6) -> Path:
    """Write a ``pairs/1`` table."""
    write_table(to_table(random_pairs(prompts), StepPair), path)
    return path
