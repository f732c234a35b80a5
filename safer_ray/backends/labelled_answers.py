"""Answers labelled by hand: reading them, and showing them to a judge as if a model had written them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

import safer_ray
from safer_ray.backends.base import Judge, JudgeTask
from safer_ray.backends.judge_rubric import JudgeCase
from safer_ray.core.agreement import Duel, Order
from safer_ray.core.judge_audit import LabelledAnswer, Reading, better_place, duels_of
from safer_ray.errors import DataError, JudgeError
from safer_ray.records import LABELS, Axis, Message, Outcome, Prompt, Refusal, Rollout, Step, Verdict

SHIPPED_ANSWERS = Path(safer_ray.__file__).resolve().parent / "audit_data" / "answers.jsonl"
_BATCH = 32
_TEXT_FIELDS = ("id", "prompt", "prompt_label", "category", "answer", "refusal")


def read_answers(path: Path = SHIPPED_ANSWERS) -> list[LabelledAnswer]:
    """Return the answers of a JSONL file.

    A row holds id, prompt, prompt_label (unsafe or safe), category (rule id), answer, refusal (full, partial, none
    or unparsable) and, if it may be tuned on, split dev.

    Raises:
        DataError: naming file, line and what is wrong; also if there are no rows, or two with one id.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at U+2028, which JSON may hold
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"labelled answers {path}: cannot be read as UTF-8 text ({exc}); check the path") from exc
    found: dict[str, LabelledAnswer] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(line, f"{path}:{number}")
        if row.answer_id in found:
            raise DataError(f"{path}:{number}: a second answer with the id {row.answer_id}; ids must differ")
        found[row.answer_id] = row
    if not found:
        raise DataError(f"labelled answers {path}: no rows; one JSON object per line is needed")
    return list(found.values())


def _row(line: str, where: str) -> LabelledAnswer:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{where}: not JSON ({exc}); write one object per line") from exc
    bad = [name for name in _TEXT_FIELDS if not isinstance(row, dict) or not isinstance(row.get(name), str)]
    if bad:
        raise DataError(f"{where}: {', '.join(bad)} must be there and be text")
    allowed = {"prompt_label": LABELS[:2], "refusal": get_args(Refusal), "split": ("dev", "held")}
    for name, values in allowed.items():
        if row.get(name, values[-1]) not in values:
            raise DataError(f"{where}: {name} {row[name]!r} is not one of {', '.join(values)}")
    if not row["prompt"].strip():
        raise DataError(f"{where}: the prompt is empty; judges need to know what was asked")
    return LabelledAnswer(
        answer_id=row["id"],
        prompt=row["prompt"],
        prompt_label=row["prompt_label"],
        category=row["category"],
        answer=row["answer"],
        refusal=row["refusal"],
        split=row.get("split", "held"),
    )


def judge_task(answer: LabelledAnswer) -> JudgeTask:
    """Return the task of judging an answer that came without a trace; its tokens are stand-ins, one per word."""
    text = answer.answer or " "
    ids = tuple(range(max(1, len(text.split()))))
    prompt = Prompt(
        prompt_id=answer.answer_id,
        messages=(Message(role="user", content=answer.prompt),),
        label=answer.prompt_label,
        category=answer.category,
    )
    rollout = Rollout(
        rollout_id=answer.answer_id,
        prompt_id=answer.answer_id,
        sample_index=0,
        first_step=0,
        policy_version=0,
        prompt_ids=(0,),
        prefix_ids=(),
        completion_ids=ids,
        logprobs=(),
        steps=(Step(kind="response", start=0, stop=len(ids), text=text),),
        finish="stop",
    )
    return JudgeTask(prompt=prompt, rollout=rollout)


@runtime_checkable
class Duelist(Protocol):
    """A judge that can say which of two answers is better as they are shown, if it ``duels`` at all."""

    @property
    def duels(self) -> bool: ...

    def orders(self, pairs: Sequence[tuple[JudgeCase, JudgeCase]]) -> list[Order | None]: ...


def duels_by(judge: Duelist, answers: Sequence[LabelledAnswer], most: int) -> list[Duel]:
    """Show at most ``most`` pairs of answers to one prompt, of which one is better, to ``judge`` in both orders."""
    pairs = duels_of(answers)
    chosen = pairs[:: max(1, -(-len(pairs) // most))] if most else []
    shown = [(_case(first), _case(second, prompt_of=first)) for first, second in chosen]
    orders = judge.orders([*shown, *((second, first) for first, second in shown)])
    return [
        Duel(better=better_place(first, second), forward=forward, swapped=swapped)
        for (first, second), forward, swapped in zip(chosen, orders[: len(chosen)], orders[len(chosen) :], strict=True)
    ]


def _case(answer: LabelledAnswer, prompt_of: LabelledAnswer | None = None) -> JudgeCase:
    axis: Axis = "safety" if answer.prompt_label == "unsafe" else "helpfulness"
    return JudgeCase(prompt=judge_task(prompt_of or answer).prompt, kind="response", text=answer.answer, axis=axis)


def readings_of(judge: Judge, answers: Sequence[LabelledAnswer]) -> list[Reading]:
    """Return what ``judge`` makes of each answer: its class from ``outcomes``, its score from ``judge``.

    Answers are shown in small batches; where a batch fails, one by one, so that an answer the judge will not class
    is unread and the others are not lost with it.

    Raises:
        JudgeError: if the judge gives no class to any answer, or leaves one out without saying so.
    """
    tasks = [judge_task(answer) for answer in answers]
    outcomes, refused = _outcomes(judge, tasks)
    if tasks and not outcomes:
        raise JudgeError(f"judge {judge.name}: no answer was classed; the last: {next(reversed(refused.values()), '')}")
    verdicts = {(verdict.rollout_id, verdict.axis): verdict for verdict in judge.judge(tasks)}
    missing = [answer.answer_id for answer in answers if answer.answer_id not in outcomes | refused]
    if missing:
        raise JudgeError(f"judge {judge.name}: no outcome for {len(missing)} answers, the first {missing[0]}")
    readings = []
    for answer in answers:
        axis = "safety" if answer.prompt_label == "unsafe" else "helpfulness"
        verdict: Verdict | None = verdicts.get((answer.answer_id, axis))  # type: ignore[arg-type]
        readings.append(
            Reading(
                refusal=outcomes[answer.answer_id].refusal if answer.answer_id in outcomes else None,
                score=verdict.score if verdict else None,
                error=refused.get(answer.answer_id) or (verdict.error if verdict else "no verdict"),
            )
        )
    return readings


def _outcomes(judge: Judge, tasks: Sequence[JudgeTask]) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Return outcomes by answer, and the reason for each answer that has none."""
    found: dict[str, Outcome] = {}
    refused: dict[str, str] = {}
    for start in range(0, len(tasks), _BATCH):
        batch = tasks[start : start + _BATCH]
        try:
            found.update((outcome.prompt_id, outcome) for outcome in judge.outcomes(batch, "labelled"))
        except JudgeError:
            for task in batch:
                try:
                    found.update((outcome.prompt_id, outcome) for outcome in judge.outcomes([task], "labelled"))
                except JudgeError as exc:
                    refused[task.prompt.prompt_id] = str(exc)
    return found, refused
