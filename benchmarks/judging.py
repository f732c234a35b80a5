"""The rule judge as a benchmark subject: Arrow tables in, Arrow tables out, one thread."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.workload import MODEL, shipped_prompts
from safer_ray.backends.base import JudgeTask, TeachTask
from safer_ray.backends.rule_judge import RuleJudgeSpec
from safer_ray.backends.template_teacher import TemplateTeacherSpec
from safer_ray.records import Rollout, Verdict
from safer_ray.tables import from_table, to_table


class RuleJudging:
    """Judges whole traces of the template teacher, every step on three axes."""

    def __init__(self, *, rollouts: int, threads: int) -> None:
        assert threads  # one is used, whatever there are
        self._judge = RuleJudgeSpec().build()
        prompts = shipped_prompts(8 * rollouts)
        teacher = TemplateTeacherSpec(pack="default", model=MODEL).build()
        examples = teacher.teach([TeachTask(prompt=prompt) for prompt in prompts]).examples[:rollouts]
        by_id = {prompt.prompt_id: prompt for prompt in prompts}
        self._prompts = [by_id[example.prompt_id] for example in examples]
        self._table = to_table(
            [
                Rollout(
                    rollout_id=example.example_id,
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
                for example in examples
            ],
            Rollout,
        )
        self._steps = sum(len(example.steps) for example in examples)
        self.facts = {"rollouts": len(examples), "steps": self._steps}
        self.run()

    def run(self) -> dict[str, Any]:
        """Judge all rollouts once."""
        begin = time.process_time()
        rollouts = from_table(self._table, Rollout)
        pairs = zip(self._prompts, rollouts, strict=True)
        verdicts = self._judge.judge([JudgeTask(prompt=prompt, rollout=rollout) for prompt, rollout in pairs])
        judged = time.process_time()
        table = to_table(verdicts, Verdict)
        seconds = time.process_time() - begin
        assert table.num_rows == 3 * self._steps
        return {"seconds": seconds, "write_s": seconds - (judged - begin), "rate": self._steps / seconds}

    def close(self) -> None:
        """Nothing to free."""
