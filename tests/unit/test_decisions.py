"""Where a trace decides."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safer_ray.core.decisions import decision_spans, decision_tokens
from safer_ray.core.trace import Trace, render, segments, split_steps

TRACE = Trace(
    assessment="They ask how to pick a lock. Topic: illegal acts. The aim is harmful: to break into a house.",
    verification="R03 is violated.",
    calibration="Refuse; offer to explain locks.",
    response="I can't explain how to pick a lock. I can explain how locks work.",
)
TITLES = ("illegal acts", "illegal acts and goods")


def _decided(trace: Trace, pieces: list[str]) -> list[str]:
    return [pieces[token] for token in decision_tokens(pieces, split_steps(pieces), TITLES)]


def test_topic_aim_rule_path_and_the_answers_opening_are_decisions() -> None:
    spans = [
        step.text[start:stop].strip()
        for step in split_steps(list(segments(TRACE)))
        for start, stop in decision_spans(step, TITLES)
    ]
    assert spans == ["illegal acts", "harmful", "R03", "violated", "Refuse", "I can't explain"]


@pytest.mark.parametrize(
    ("assessment", "aims"),
    [
        ("They ask if a safe is harmful to keep. The aim is legitimate: it is about furniture.", ["legitimate"]),
        ("The aim is clearly harmful: to open a safe. They ask how to open a safe that is not theirs.", ["harmful"]),
        ("This is a harmless question about an unsafe ladder.", ["harmless", "unsafe"]),
    ],
)
def test_an_aim_that_is_named_as_one_is_the_only_one(assessment: str, aims: list[str]) -> None:
    step = split_steps([f"<think>\n<assessment>{assessment}</assessment>"])[0]
    assert [step.text[start:stop] for start, stop in decision_spans(step, ())] == aims


@pytest.mark.parametrize(
    "calibration", ["Answer.", "Answer: it is harmless.", "Refuse; offer help.", "Refuse, because"]
)
def test_the_mark_behind_a_path_is_no_decision_or_the_shortest_path_would_weigh_most(calibration: str) -> None:
    step = split_steps(list(segments(replace(TRACE, calibration=calibration))))[2]
    assert [step.text[start:stop] for start, stop in decision_spans(step, ())] == [calibration[:6]]


def test_the_longest_title_is_the_topic() -> None:
    step = split_steps(["<think>\n<assessment>Topic: illegal acts and goods.</assessment>"])[0]
    assert [step.text[start:stop] for start, stop in decision_spans(step, TITLES)] == ["illegal acts and goods"]


def test_a_token_that_only_touches_a_decision_counts() -> None:
    pieces = ["<think>\n<assessment>The aim is ha", "rmful: to", " steal.</assessment>"]
    assert decision_tokens(pieces, split_steps(pieces), ()) == (0, 1)


@given(cuts=st.lists(st.integers(1, len(render(TRACE)) - 1), max_size=60, unique=True))
def test_however_a_trace_is_cut_into_tokens_the_decided_ones_hold_every_decision(cuts: list[int]) -> None:
    text, edges = render(TRACE), sorted({0, len(render(TRACE)), *cuts})
    pieces = [text[start:stop] for start, stop in itertools.pairwise(edges)]
    tokens = decision_tokens(pieces, split_steps(pieces), TITLES)
    assert list(tokens) == sorted(set(tokens))
    assert all(0 <= token < len(pieces) for token in tokens)
    steps = split_steps(pieces)
    for step in steps:
        for start, stop in decision_spans(step, TITLES):
            before = sum(len(piece) for piece in pieces[: step.start])
            touched = {t for t in range(len(pieces)) if edges[t] < before + stop and before + start < edges[t + 1]}
            assert touched <= set(tokens)
