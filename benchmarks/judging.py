"""The rule judge as a benchmark subject: Arrow tables in, Arrow tables out, one thread."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa

from benchmarks.workload import MODEL, shipped_prompts
from safer_ray.backends.base import JudgeTask, TeachTask
from safer_ray.backends.rule_judge import RuleJudgeSpec
from safer_ray.backends.template_teacher import TemplateTeacherSpec
from safer_ray.records import Prompt, Rollout, TraceExample, Verdict
from safer_ray.tables import from_table, to_table


class RuleJudging:
    """Judges whole traces of the template teacher, every step on three axes.

    Each prompt has up to ``siblings`` traces in different words, as a tree's steps are. The prompts are dealt into
    ``deals`` tables, and every run takes the next one: what the judge remembers of a text it has from the same run.
    """

    def __init__(self, *, prompts: int, siblings: int, deals: int, threads: int) -> None:
        assert threads  # one is used, whatever there are
        self._judge, asked = RuleJudgeSpec().build(), shipped_prompts(prompts)
        by_id = {prompt.prompt_id: prompt for prompt in asked}
        found: list[TraceExample] = []
        for seed in range(siblings):
            teacher = TemplateTeacherSpec(pack="default", model=MODEL, seed=seed).build()
            found.extend(teacher.teach([TeachTask(prompt=prompt) for prompt in asked]).examples)
        dealt = {prompt_id: place % deals for place, prompt_id in enumerate(dict.fromkeys(e.prompt_id for e in found))}
        self._deals = [_Deal([each for each in found if dealt[each.prompt_id] == deal], by_id) for deal in range(deals)]
        self._turn = 0
        self.facts = {"rollouts": len(found), "prompts": len(dealt)}
        self.run()

    def run(self) -> dict[str, Any]:
        """Judge the rollouts of the next table once."""
        deal = self._deals[self._turn % len(self._deals)]
        self._turn += 1
        begin = time.process_time()
        rollouts = from_table(deal.table, Rollout)
        pairs = zip(deal.prompts, rollouts, strict=True)
        verdicts = self._judge.judge([JudgeTask(prompt=prompt, rollout=rollout) for prompt, rollout in pairs])
        judged = time.process_time()
        table = to_table(verdicts, Verdict)
        seconds = time.process_time() - begin
        assert table.num_rows == 3 * deal.steps
        return {"seconds": seconds, "write_s": seconds - (judged - begin), "rate": deal.steps / seconds}

    def close(self) -> None:
        """Nothing to free."""


class _Deal:
    """The rollouts of one run, as one table, with the prompt of each."""

    def __init__(self, examples: list[TraceExample], prompts: dict[str, Prompt]) -> None:
        examples = sorted(examples, key=lambda example: example.prompt_id)
        self.prompts = [prompts[example.prompt_id] for example in examples]
        self.steps = sum(len(example.steps) for example in examples)
        self.table: pa.Table = to_table(
            [
                Rollout(
                    rollout_id=f"{number}/{example.example_id}",
                    prompt_id=example.prompt_id,
                    sample_index=0,
                    first_step=0,
                    policy_version=0,
                    prompt_ids=example.prompt_ids,
                    prefix_ids=(),
                    completion_ids=example.completion_ids,
                    logprobs=(0.0,) * len(example.completion_ids),
                    steps=example.steps,
                    finish="stop",
                )
                for number, example in enumerate(examples)
            ],
            Rollout,
        )
