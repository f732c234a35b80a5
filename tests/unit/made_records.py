"""Records of every kind as hypothesis builds them: whatever the records themselves allow."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from safer_ray.records import (
    AXES,
    LABELS,
    STEP_KINDS,
    Lineage,
    Message,
    Outcome,
    Prompt,
    Rollout,
    SampleRequest,
    Step,
    StepPair,
    TraceExample,
    Verdict,
)

text = st.text(max_size=12)
name = st.text(min_size=1, max_size=8)
ids = st.lists(st.integers(0, 2**31), max_size=5).map(tuple)
some_ids = st.lists(st.integers(0, 2**31), min_size=1, max_size=5).map(tuple)
version = st.integers(0, 10**6)
finite = st.floats(allow_nan=False, allow_infinity=False)
share = st.floats(0, 1)
messages = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=text), max_size=2
).flatmap(lambda before: st.builds(lambda content: (*before, Message(role="user", content=f"{content}?")), text))

prompts = st.builds(
    Prompt,
    prompt_id=name,
    messages=messages,
    label=st.sampled_from(LABELS),
    category=name,
    form=text,
    source=text,
    split=text,
)
_request = {
    "request_id": name,
    "prompt_id": name,
    "messages": messages,
    "n": st.integers(1, 9),
    "mode": st.sampled_from(["step", "trace", "answer"]),
    "seed": st.integers(0, 2**31 - 1),
}
requests = st.builds(SampleRequest, **_request) | st.builds(
    SampleRequest, first_step=st.integers(1, 3), prefix_ids=some_ids, **_request
)


@st.composite
def tiled(draw: st.DrawFn) -> dict[str, Any]:
    """Return ``completion_ids`` and the steps that tile them."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    first = draw(st.integers(0, 4 - len(lengths)))
    steps, start = [], 0
    for number, length in enumerate(lengths):
        steps.append(Step(kind=STEP_KINDS[first + number], start=start, stop=start + length, text=draw(text)))
        start += length
    return {
        "completion_ids": tuple(draw(st.lists(st.integers(0, 999), min_size=start, max_size=start))),
        "steps": tuple(steps),
    }


@st.composite
def _rollouts(draw: st.DrawFn) -> Rollout:
    completion = draw(tiled())
    tokens = len(completion["completion_ids"]) if draw(st.booleans()) else 0
    return Rollout(
        rollout_id=draw(name),
        prompt_id=draw(name),
        sample_index=draw(version),
        first_step=draw(st.integers(0, 3)),
        policy_version=draw(version),
        prompt_ids=draw(ids),
        prefix_ids=draw(ids),
        logprobs=tuple(draw(st.lists(finite, min_size=tokens, max_size=tokens))),
        finish=draw(st.sampled_from(["stop", "length", "abort"])),
        **completion,
    )


rollouts = _rollouts()
examples = tiled().flatmap(
    lambda completion: st.builds(
        TraceExample,
        example_id=name,
        prompt_id=name,
        prompt_ids=ids,
        teacher=text,
        completion_ids=st.just(completion["completion_ids"]),
        steps=st.just(completion["steps"]),
    )
)
_verdict = {
    "rollout_id": name,
    "step_index": st.integers(0, 3),
    "axis": st.sampled_from(AXES),
    "judge": name,
    "rules_hit": st.lists(name, max_size=2).map(tuple),
    "reason": text,
}
verdicts = st.builds(Verdict, score=share, error=text, **_verdict) | st.builds(
    Verdict, score=st.none(), error=name, **_verdict
)
lineages = st.builds(
    Lineage,
    judge=text,
    rule_pack_hash=text,
    sampler=text,
    temperature=finite,
    top_p=finite,
    reference=text,
    round=version,
)
pairs = st.builds(
    StepPair,
    pair_id=name,
    prompt_id=name,
    step_index=st.integers(0, 3),
    step_kind=st.sampled_from(STEP_KINDS),
    axis=st.sampled_from(AXES),
    prompt_ids=ids,
    prefix_ids=ids,
    chosen_ids=some_ids,
    rejected_ids=some_ids.map(lambda tokens: (-1, *tokens)),
    chosen_text=text,
    rejected_text=text,
    margin=st.floats(0, 1, exclude_min=True),
    policy_version=version,
    lineage=lineages,
    prefix_text=text,
)
outcomes = st.builds(
    Outcome,
    prompt_id=name,
    checkpoint=name,
    policy_version=version,
    judge=name,
    refusal=st.sampled_from(["full", "partial", "none", "unparsable"]),
    complied=st.booleans(),
    well_formed=st.booleans(),
    truncated=st.booleans(),
    cited_rule=text,
    consistent=st.none() | st.booleans(),
    reasoning_tokens=version,
    text=text,
    response=text,
)

STRATEGIES: dict[type, st.SearchStrategy[Any]] = {
    Prompt: prompts,
    SampleRequest: requests,
    Rollout: rollouts,
    Verdict: verdicts,
    StepPair: pairs,
    TraceExample: examples,
    Outcome: outcomes,
}
"""One strategy per record kind that has a table."""
