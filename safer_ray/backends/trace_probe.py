"""Probing a checkpoint: does its answer depend on its trace? Traces are swapped, cut and edited, answers sampled anew.

Every probe forces a prefix of trace tokens and lets the model go on from there, through the same protocol and
the same sampler that a run uses. Answers are sampled greedily where the sampler's settings say so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from safer_ray.backends.base import Sampler
from safer_ray.core.branching import derived_seed
from safer_ray.core.refusal import classify_refusal
from safer_ray.core.trace import Trace, parse, response_of, segments
from safer_ray.core.trace_audit import Diversity, Effect, diversity, effect, is_used
from safer_ray.errors import TraceError
from safer_ray.records import NO_RULE, Prompt, Rollout, SampleRequest

logger = logging.getLogger(__name__)
_TURN_END = re.compile(r"(?:\s*<\|[^|>\s]{1,40}\|>|\s*</s>)+\s*$")
_RULE_ID = re.compile(r"\bR\d\d\b")
_CLOSE_THINKING = "\n</think>"
_BATCH = 32
Answer = tuple[bool, str]
"""Whether it gives nothing of what was asked (a full refusal, or no answer at all), and its text."""


class SegmentTokenizer(Protocol):
    """What probing needs of ``models.ChatTokenizer``."""

    def segment_ids(self, text: str) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A prompt with the trace and the answer a checkpoint gave it by itself."""

    prompt: Prompt
    rollout: Rollout
    trace: Trace
    answer: Answer

    def prefix(self, steps: int) -> tuple[int, ...]:
        """Return the token ids of the first ``steps`` steps."""
        return self.rollout.completion_ids[: self.rollout.steps[steps - 1].stop]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceAudit:
    """What probing found. ``unread`` are prompts whose completion was no whole trace; nothing could be probed there.

    ``control`` goes on from the model's own trace; ``used`` as in ``core.trace_audit.is_used`` with swapped traces.
    """

    prompts: int
    unread: int
    control: Effect
    swap: Effect
    truncate: Effect
    shuffle: Effect
    used: bool | None
    diversity: Diversity | None


def audit_traces(
    sampler: Sampler, tokenizer: SegmentTokenizer, prompts: Sequence[Prompt], rule_ids: Sequence[str], *, seed: int = 0
) -> TraceAudit:
    """Sample a trace for every prompt, then what the model answers after each change to it.

    ``rule_ids`` are those of the rule pack. Prompts of rules that must not be sampled are the caller's to leave out.
    """
    subjects = _subjects(sampler, prompts, seed)
    before = {subject.prompt.prompt_id: subject.answer for subject in subjects}
    probes: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {
        "own trace": {s.prompt.prompt_id: (3, s.prefix(3)) for s in subjects},
        "swapped trace": {s.prompt.prompt_id: (3, other.prefix(3)) for s, other in _partners(subjects, seed)},
        "assessment only": {
            s.prompt.prompt_id: (3, s.prefix(1) + tokenizer.segment_ids(_CLOSE_THINKING)) for s in subjects
        },
        "another rule": {
            s.prompt.prompt_id: (2, s.prefix(1) + tokenizer.segment_ids(text))
            for s in subjects
            if (text := _other_rule(s, rule_ids, seed))
        },
    }
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    effects = {name: _effect(name, sampler, by_id, cases, before) for name, cases in probes.items()}
    control, swap = effects["own trace"], effects["swapped trace"]
    return TraceAudit(
        prompts=len(prompts),
        unread=len(prompts) - len(subjects),
        control=control,
        swap=swap,
        truncate=effects["assessment only"],
        shuffle=effects["another rule"],
        used=is_used(control, swap),
        diversity=_diversity(subjects, seed) if subjects else None,
    )


def _subjects(sampler: Sampler, prompts: Sequence[Prompt], seed: int) -> list[Subject]:
    requests = [
        SampleRequest(
            request_id=f"audit/{prompt.prompt_id}", prompt_id=prompt.prompt_id, messages=prompt.messages, seed=seed
        )
        for prompt in prompts
    ]
    found = []
    for prompt, rollout in zip(prompts, _sampled(sampler, requests), strict=True):
        try:
            trace = parse(_TURN_END.sub("", rollout.text))
        except TraceError as exc:
            logger.info("no trace to probe prompt=%s reason=%s", prompt.prompt_id, exc)
            continue
        if rollout.finish == "stop" and len(rollout.steps) == 4:
            found.append(Subject(prompt=prompt, rollout=rollout, trace=trace, answer=_read(trace.response)))
    return found


def _sampled(sampler: Sampler, requests: Sequence[SampleRequest]) -> list[Rollout]:
    return [
        rollout
        for start in range(0, len(requests), _BATCH)
        for rollout in sampler.sample(requests[start : start + _BATCH])
    ]


def _read(response: str) -> Answer:
    return classify_refusal(response) not in ("partial", "none"), response


def _partners(subjects: Sequence[Subject], seed: int) -> list[tuple[Subject, Subject]]:
    """Pair every subject with one that was answered the other way, drawn by seed; nobody where all are alike."""
    pairs = []
    for subject in subjects:
        others = [other for other in subjects if other.answer[0] != subject.answer[0]]
        if others:
            pairs.append((subject, others[derived_seed(seed, "swap", subject.prompt.prompt_id) % len(others)]))
    return pairs


def _other_rule(subject: Subject, rule_ids: Sequence[str], seed: int) -> str:
    """Return the verification's segment with every rule id exchanged for another one, "" if it cites none."""
    cited = sorted(set(_RULE_ID.findall(subject.trace.verification)) - {NO_RULE})
    spare = [rule for rule in rule_ids if rule not in cited]
    if not cited or not spare:
        return ""
    names = {rule: spare[derived_seed(seed, "rule", subject.prompt.prompt_id, rule) % len(spare)] for rule in cited}
    edited = _RULE_ID.sub(lambda match: names.get(match[0], match[0]), subject.trace.verification)
    steps = dict(zip(("assessment", "verification", "calibration", "response"), subject.trace.steps, strict=True))
    return segments(Trace(**(steps | {"verification": edited})))[1]


def _effect(
    name: str,
    sampler: Sampler,
    prompts: Mapping[str, Prompt],
    cases: Mapping[str, tuple[int, tuple[int, ...]]],
    before: Mapping[str, Answer],
) -> Effect:
    requests = [
        SampleRequest(
            request_id=f"audit/{name}/{prompt_id}",
            prompt_id=prompt_id,
            messages=prompts[prompt_id].messages,
            prefix_ids=prefix,
            first_step=first_step,
        )
        for prompt_id, (first_step, prefix) in cases.items()
    ]
    after = []
    for request, rollout in zip(requests, _sampled(sampler, requests), strict=True):
        # Only the steps sampled here: what was forced ends before the response.
        text = _TURN_END.sub("", rollout.text)
        after.append(_read(response_of(text) if request.first_step < 3 else text.strip()))
    return effect(name, [before[prompt_id] for prompt_id in cases], after)


def _diversity(subjects: Sequence[Subject], seed: int) -> Diversity:
    return diversity(
        [subject.trace.assessment for subject in subjects],
        [" ".join(subject.trace.steps[:3]) for subject in subjects],
        [subject.prompt.category for subject in subjects],
        seed=seed,
    )
