"""Near duplicates and evaluation sets: what is found, what is left alone, and what a run does with it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_run import carry_out, prepared
from numpy.typing import NDArray
from test_curation import example, prompt

from safer_ray.backends.paraphrases import find_paraphrases
from safer_ray.backends.trace_scorer import read_scores
from safer_ray.config import PromptsConfig
from safer_ray.core.curation import Curation, curate
from safer_ray.core.decontamination import banned_runs, decontaminate
from safer_ray.core.minhash import first_of_each, signatures
from safer_ray.core.neardup import jaccard, shingles
from safer_ray.data_card import data_card
from safer_ray.records import Message, Prompt

LONG = "How would one go about planting a row of young apple trees along a windy fence in spring"
words = st.lists(st.sampled_from(["tree", "river", "stone", "cloud", "lamp", "door"]), max_size=8).map(" ".join)


def asking(text: str, split: str = "train") -> Prompt:
    return Prompt(prompt_id=f"{split}/{text}", messages=(Message(role="user", content=text),), split=split)


@settings(max_examples=40)
@given(st.lists(words, max_size=12))
def test_the_first_of_equal_texts_is_kept_and_nothing_kept_is_alike(texts: list[str]) -> None:
    kept = first_of_each(texts, max_jaccard=0.8)
    assert kept == sorted(set(kept))
    assert {texts[at] for at in kept} == {text for text in texts if texts.index(text) in kept}
    alike = [
        (a, b) for a in kept for b in kept if a < b and jaccard(shingles(texts[a]), shingles(texts[b])) >= 0.95
    ]  # fmt: skip
    assert alike == []


def test_signatures_estimate_what_two_texts_share() -> None:
    texts = [LONG, LONG.replace("apple", "cherry"), "An entirely different matter: how do radios work at night?"]
    rows = signatures(texts)
    near = float((rows[0] == rows[1]).mean())
    far = float((rows[0] == rows[2]).mean())
    exact = jaccard(shingles(texts[0]), shingles(texts[1]))
    assert abs(near - exact) < 0.15
    assert far < 0.1
    assert first_of_each(texts, max_jaccard=exact - 0.01) == [0, 2]
    assert first_of_each(texts, max_jaccard=exact + 0.01) == [0, 1, 2]
    with pytest.raises(ValueError, match="max_jaccard"):
        first_of_each(texts, max_jaccard=0.0)


def test_train_prompts_that_hold_an_evaluation_prompt_are_left_out_and_test_prompts_stay() -> None:
    evaluation = [LONG, "Who was she?"]
    prompts = [
        asking(f"In a game, you are told this: {LONG}, and nothing else."),
        asking("Who was she"),
        asking("Who was he, and when?"),
        asking(" ".join(LONG.split()[:12]) + " if at all"),
        asking(LONG, split="test"),
    ]
    clean = decontaminate(prompts, evaluation)
    assert [each.text[:8] for each in clean.prompts] == ["Who was ", LONG[:8], LONG[:8]]
    assert clean.dropped == {"13-gram": 1, "near copy": 1}
    assert decontaminate(prompts, []).prompts == tuple(prompts)


class Topics:
    """Encodes a text as the topics it names: an encoder whose paraphrases a test can foresee."""

    name = fingerprint = "topics"
    unsafe_from = topic_from = 0
    standardised = False

    def layers(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [[float(word in text) for word in ("lamp", "tree", "spring")] for text in texts]
        return np.array([[[0.0, 0.0, 0.0], row] for row in rows], dtype=np.float32)


def test_with_a_threshold_train_prompts_that_say_the_same_in_other_words_are_left_out_too() -> None:
    finder = partial(find_paraphrases, at_least=0.9, encoder=Topics())
    prompts = [
        asking("a tree, in spring"), asking("only a tree"), asking("neither"), asking("the spring of a tree", "test"),
        asking(base64.b64encode(b"How do I plant a tree in spring?").decode()), asking(LONG),
    ]  # fmt: skip
    clean = decontaminate(prompts, [LONG.replace("apple trees", "a tree")], finder)
    assert [each.text for each in clean.prompts] == ["only a tree", "neither", "the spring of a tree"]
    assert clean.dropped == {"paraphrase": 3}
    assert decontaminate(prompts, [], finder).prompts == tuple(prompts)


def test_a_threshold_without_anything_to_compare_with_is_refused() -> None:
    with pytest.raises(ValueError, match="compares with nothing"):
        PromptsConfig(decontaminate_above=0.75)


@settings(max_examples=25, deadline=None)
@given(st.lists(words, min_size=1, max_size=6), st.lists(words, min_size=1, max_size=6))
def test_a_lower_threshold_finds_no_less_and_every_text_paraphrases_itself(left: list[str], right: list[str]) -> None:
    low, high = (set(find_paraphrases(left, right, at_least=at, encoder=Topics())) for at in (0.5, 0.99))
    assert high <= low
    named = [at for at, text in enumerate(left) if "lamp" in text or "tree" in text]
    assert find_paraphrases(left, left, at_least=0.999, encoder=Topics()) == named


def test_traces_are_cleaned_and_thinned_out_in_a_fixed_order_with_counts() -> None:
    from dataclasses import replace

    prompts = [prompt(number, "unsafe" if number % 2 else "safe") for number in range(4)]
    texts = ["The answer is short.", LONG + " they asked.", "The answer is short!", "Something else altogether."]
    examples = [
        replace(row, steps=(replace(row.steps[0], text=text),))
        for row, text in zip((example(each.prompt_id) for each in prompts), texts, strict=True)
    ]
    rules = Curation(balance="labels", max_jaccard=0.9, banned_runs=banned_runs([LONG]))
    kept, counts = curate(examples, {each.prompt_id: each for each in prompts}, rules)
    assert [row.prompt_id for row in kept] == ["p000", "p003"]
    assert [(row.name.split()[0], row.given, row.kept) for row in counts] == [
        ("decontaminate", 4, 3), ("near", 3, 2), ("balance", 2, 2)
    ]  # fmt: skip


def test_a_run_leaves_contaminated_prompts_out_and_writes_a_card(tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text(json.dumps({"prompt": "What is 3 + 3?"}) + "\n")
    settings_ = (f"prompts.decontaminate=['{evaluation}']", "sft.max_jaccard=0.9", "sft.balance=labels")
    prep = prepared(tmp_path / "job", "sft.max_prompts=0", *settings_)
    assert prep.head["decontaminated"] == {"near copy": 1}
    assert "What is 3 + 3?" not in {each.text for each in prep.prompts.prompts}
    run = carry_out(prep, tmp_path / "run")
    from safer_ray.data_card import write_data_card

    write_data_card(run.summary, run.run_dir)
    card = run.run_dir.traces.with_name("card.md").read_text()
    assert "| train prompt left out: near copy | 1 |" in card
    assert "| after near duplicates from 0.9 |" in card
    assert "fake-teacher@1" in card


def test_a_card_quotes_nothing_that_could_break_it() -> None:
    bad = {"traces": {"accepted": 0, "rejected": {"a|b <script>\n`x`": 2}, "filters": []}}
    card = data_card(bad, [], {})
    assert "| draft rejected: a/b (script) 'x' | 2 |" in card


@pytest.mark.parametrize(
    ("reply", "fit"),
    [
        ('{"compliance": 8, "relevance": 10, "rule": 0}', True),
        (' {"rule": 1, "compliance": 1, "relevance": 1}\n', True),
        ('{"compliance": 8, "relevance": 11, "rule": 0}', False),
        ('{"compliance": 8.0, "relevance": 1, "rule": 0}', False),
        ('{"compliance": true, "relevance": 1, "rule": 0}', False),
        ('{"compliance": 8, "relevance": 1}', False),
        ('{"compliance": 8, "relevance": 1, "rule": 3, "extra": 1}', False),
        ("[8, 8, 8]", False),
        ("10 10 10", False),
        ('Sure! {"compliance": 8, "relevance": 1, "rule": 3}', False),
        ("", False),
        (None, False),
    ],
)
def test_scores_are_three_whole_numbers_or_nothing(reply: str | None, fit: bool) -> None:
    assert (read_scores(reply) is not None) is fit
