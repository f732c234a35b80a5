"""What happens to rollouts after they were sampled: judged, scored, paired, continued, kept.

The grader is the object inside a judge actor. It sees one item (one prompt) at a time; everything it needs
comes with the call, so any grader can take any level of any item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from safer_ray.backends.base import Judge, JudgeSpec, JudgeTask, Teacher, TeacherSpec, TeachTask
from safer_ray.backends.ensemble_judge import build_judge
from safer_ray.backends.judge_usage import Costed
from safer_ray.backends.selection import Selection, SelectionSpec
from safer_ray.core.branching import next_prefix, pick_continuation
from safer_ray.core.outcome import continuations_of
from safer_ray.core.pairing import PairingRules, ScoredStep, pair_siblings
from safer_ray.core.scoring import score_of
from safer_ray.errors import DataError, TeacherError
from safer_ray.records import Lineage, Outcome, Prompt, Rollout, Step, StepPair, TraceExample, Verdict
from safer_ray.tables import from_table, to_table, write_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFacts:
    """What the lineage of a round's pairs needs beyond the judge."""

    round: int
    sampler: str
    temperature: float
    top_p: float
    reference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelTask:
    """One level of one prompt's tree; ``history`` are the steps of the prefix."""

    prompt: Prompt
    level: int
    history: tuple[Step, ...]
    facts: RoundFacts
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelReply:
    """What the driver needs to go on. ``prefix_ids`` is empty where the tree ends."""

    prefix_ids: tuple[int, ...]
    history: tuple[Step, ...]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether there is no further level."""
        return not self.prefix_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class GraderSpec:
    """Builds a grader; ``teacher`` is None in runs that write no traces.

    ``judge`` makes preferences, ``reporter`` judges evaluations (None: ``judge`` does), ``selection`` filters the
    teacher's traces (None: they pass as the teacher wrote them). ``pairing_ahead`` are the margins of steps that are
    valued by their continuations (None: ``pairing``).
    """

    judge: JudgeSpec
    pairing: PairingRules
    teacher: TeacherSpec | None = None
    reporter: JudgeSpec | None = None
    selection: SelectionSpec | None = None
    pairing_ahead: PairingRules | None = None

    def build(self) -> Grader:
        """Build judges and teacher here; judges of equal specs are one object."""
        built: dict[JudgeSpec, Judge] = {}
        bench = Bench(
            reward=build_judge(self.judge, built),
            reporter=build_judge(self.reporter or self.judge, built),
            selection=self.selection.build_with(built) if self.selection else None,
        )
        return Grader(bench, self.pairing, self.teacher.build() if self.teacher else None, self.pairing_ahead)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The judges of a run by purpose; one judge may serve several."""

    reward: Judge
    reporter: Judge
    selection: Selection | None = None

    def take_costs(self) -> dict[str, int]:
        """Return what the judges that cost anything spent since the last call."""
        judges = [self.reward, self.reporter, *([self.selection.judge] if self.selection else [])]
        costs: dict[str, int] = {}
        for judge in judges:
            if isinstance(judge, Costed):
                for name, count in judge.take_costs().items():
                    costs[name] = costs.get(name, 0) + count
        return costs


class Grader:
    """The judges of a run and, if it writes traces, a teacher."""

    def __init__(
        self,
        bench: Bench,
        pairing: PairingRules,
        teacher: Teacher | None = None,
        pairing_ahead: PairingRules | None = None,
    ) -> None:
        self._bench = bench
        self._judge = bench.reward
        self._pairing = pairing
        self._pairing_ahead = pairing_ahead or pairing
        self._teacher = teacher

    def level(self, task: LevelTask, rollouts: pa.Table) -> tuple[LevelReply, list[pa.Table]]:
        """Judge one level's siblings; return how to go on, and the tables to keep.

        Rollouts of a later step are continuations of the siblings.
        """
        sampled = from_table(rollouts, Rollout)
        siblings = [rollout for rollout in sampled if rollout.first_step == task.level]
        ahead = [rollout for rollout in sampled if rollout.first_step != task.level]
        verdicts = self._judge.judge(
            [
                JudgeTask(
                    prompt=task.prompt,
                    rollout=sibling,
                    history=task.history,
                    continuations=continuations_of(sibling, ahead),
                )
                for sibling in siblings
            ]
        )
        by_rollout: dict[str, list[Verdict]] = defaultdict(list)
        for verdict in verdicts:
            by_rollout[verdict.rollout_id].append(verdict)
        scored = [ScoredStep(rollout=r, score=score_of(by_rollout[r.rollout_id])) for r in siblings]
        prefix_text = "".join(step.text for step in task.history)
        margins = self._pairing_ahead if ahead else self._pairing
        pairs = pair_siblings(scored, margins, self._lineage(task.facts), prefix_text)
        picked = pick_continuation(scored, task.seed)
        prefix_ids, history = next_prefix(picked, task.history) if picked else ((), task.history)
        counts = {"rollouts": len(siblings), "steps": len(scored), "continuations": len(ahead)}
        counts["unscored"] = sum(step.score.safety is None or step.score.helpfulness is None for step in scored)
        for pair in pairs:
            counts[f"pairs_{pair.axis}"] = counts.get(f"pairs_{pair.axis}", 0) + 1
        counts |= self._bench.take_costs()
        reply = LevelReply(prefix_ids=prefix_ids, history=history, counts=counts)
        return reply, [rollouts, to_table(verdicts, Verdict), to_table(pairs, StepPair)]

    def _lineage(self, facts: RoundFacts) -> Lineage:
        return Lineage(
            judge=self._judge.name,
            rule_pack_hash=self._judge.rule_pack_hash,
            sampler=facts.sampler,
            temperature=facts.temperature,
            top_p=facts.top_p,
            reference=facts.reference,
            round=facts.round,
        )

    def outcome(self, prompt: Prompt, rollouts: pa.Table, checkpoint: str) -> tuple[dict[str, int], list[pa.Table]]:
        """Judge one whole completion; return counts and the tables to keep."""
        tasks = [JudgeTask(prompt=prompt, rollout=rollout) for rollout in from_table(rollouts, Rollout)]
        outcomes = self._bench.reporter.outcomes(tasks, checkpoint)
        return {"outcomes": len(outcomes)} | self._bench.take_costs(), [to_table(outcomes, Outcome)]

    def teach(self, prompt: Prompt, answers: pa.Table | None) -> tuple[dict[str, int], list[pa.Table]]:
        """Write the traces of one prompt; return counts (rejections by reason) and the tables to keep."""
        if self._teacher is None:
            raise TeacherError("grader: this run has no teacher; add synth to stages")
        texts = tuple(r.text for r in from_table(answers, Rollout)) if answers is not None else ()
        result = self._teacher.teach([TeachTask(prompt=prompt, answers=texts)])
        if self._bench.selection is not None:
            result = self._bench.selection.keep(prompt, result)
        counts = {"accepted": len(result.examples)}
        for _, reason in result.rejected:
            counts[f"rejected: {reason}"] = counts.get(f"rejected: {reason}", 0) + 1
        return counts | self._bench.take_costs(), [to_table(result.examples, TraceExample)]

    @staticmethod
    def keep(path: str, tables: Sequence[pa.Table]) -> str:
        """Write an item's tables durably as one shard named after its content; return the digest.

        Raises:
            JournalError: if the disk refuses.
        """
        if not tables:
            raise DataError(f"shard {path}: nothing to keep")
        return write_shard(tables, Path(path))
