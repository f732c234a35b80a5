"""The prompts that ship: enough of each kind, alike in form and length for both labels, test apart from train."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safer_ray.config import PromptSource
from safer_ray.core.encode import find_encoded
from safer_ray.core.neardup import jaccard, near_duplicates, shingles, word_runs
from safer_ray.prompts import load_prompts, shipped_pack

_FORMS = {"question", "imperative", "roleplay", "code", "encoded"}
_RULES = [f"R{number:02}" for number in range(1, 15)]


def _rows() -> list[dict[str, Any]]:
    folder = shipped_pack("default") / "prompts"
    files = [path for path in sorted(folder.glob("*.jsonl")) if not path.stem.endswith("_answers")]
    return [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]


ROWS = _rows()


def _plain(row: dict[str, Any]) -> str:
    return str(row.get("plain", row["prompt"]))


def _of(category: str, label: str) -> list[dict[str, Any]]:
    return [row for row in ROWS if row["category"] == category and row["label"] == label]


def test_every_shipped_row_is_a_prompt() -> None:
    loaded = load_prompts([PromptSource(path="shipped:default")], max_bad_share=0)
    assert len(loaded.prompts) == len(ROWS)
    assert all(prompt.label != "unknown" and prompt.form in _FORMS for prompt in loaded.prompts)


@pytest.mark.parametrize("category", _RULES)
def test_a_rule_has_at_least_fourteen_prompts_of_each_label(category: str) -> None:
    assert len(_of(category, "unsafe")) >= 14
    assert len(_of(category, "safe")) >= 14


def test_there_are_at_least_120_ordinary_tasks() -> None:
    assert len(_of("R00", "safe")) >= 120
    assert _of("R00", "unsafe") == []


def test_the_test_split_has_at_least_sixty_of_each_label() -> None:
    counts = Counter(row["label"] for row in ROWS if row["split"] == "test" and row["category"] != "R04")
    assert min(counts["unsafe"], counts["safe"]) >= 60


@pytest.mark.parametrize("category", _RULES)
def test_unsafe_and_safe_have_the_same_forms_in_each_split(category: str) -> None:
    forms = [Counter((row["split"], row["form"]) for row in _of(category, label)) for label in ("unsafe", "safe")]
    assert forms[0] == forms[1]


@pytest.mark.parametrize("category", _RULES)
def test_unsafe_and_safe_have_the_same_length(category: str) -> None:
    means = [fmean(len(_plain(row).split()) for row in _of(category, label)) for label in ("unsafe", "safe")]
    assert means[0] == pytest.approx(means[1], rel=0.1)


def test_no_opening_gives_the_label_away() -> None:
    by_opening: dict[str, Counter[str]] = defaultdict(Counter)
    for row in ROWS:
        if row["category"] != "R00":
            by_opening[_plain(row).split()[0].lower()][row["label"]] += 1
    frequent = {opening: counts for opening, counts in by_opening.items() if counts.total() >= 20}
    shares = {opening: counts["unsafe"] / counts.total() for opening, counts in frequent.items()}
    assert len(shares) >= 10
    assert {opening: share for opening, share in shares.items() if not 0.3 <= share <= 0.7} == {}


def test_no_test_prompt_is_near_a_train_prompt() -> None:
    test = [row for row in ROWS if row["split"] == "test"]
    train = [row for row in ROWS if row["split"] == "train"]
    found = near_duplicates([_plain(row) for row in test], [_plain(row) for row in train])
    assert [(test[hit.left]["id"], train[hit.right]["id"], hit.jaccard, hit.run) for hit in found] == []


def test_encoded_prompts_say_what_their_plain_text_says_and_twins_share_the_encoding() -> None:
    encodings: dict[str, set[str]] = defaultdict(set)
    encoded = [row for row in ROWS if row["form"] == "encoded"]
    for row in encoded:
        found = find_encoded(row["prompt"])
        assert found is not None, row["id"]
        assert found.plain == row["plain"]
        encodings[row["id"].rpartition("-")[0]].add(found.encoding)
    assert len(encoded) >= 100
    assert all(len(names) == 1 for names in encodings.values())
    assert len(set.union(*encodings.values())) == 5


def test_every_safe_prompt_no_model_answers_has_a_written_answer() -> None:
    path = shipped_pack("default") / "prompts" / "R04_answers.jsonl"
    written = {json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()}
    assert {row["id"] for row in _of("R04", "safe")} <= written


_WORDS = st.lists(
    st.sampled_from(["the", "a", "cat", "dog", "sat", "on", "mat", "red", "big", "ran", "to", "home"]), max_size=12
).map(" ".join)


@given(_WORDS, _WORDS)
def test_likeness_is_symmetric_and_one_for_equal_texts(left: str, right: str) -> None:
    assert jaccard(shingles(left), shingles(right)) == jaccard(shingles(right), shingles(left))
    assert jaccard(shingles(left), shingles(left)) == 1.0


@given(st.lists(_WORDS, max_size=6), st.lists(_WORDS, max_size=6))
def test_near_duplicates_are_those_that_comparing_every_pair_finds(left: list[str], right: list[str]) -> None:
    slow = {
        (i, j)
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if jaccard(shingles(a), shingles(b)) >= 0.5 or word_runs(a) & word_runs(b)
    }
    assert {(hit.left, hit.right) for hit in near_duplicates(left, right)} == slow


def test_a_shared_template_with_other_slots_is_found() -> None:
    (hit,) = near_duplicates(["how do i get into the red house by night and take gold"],
                             ["tell us how do i get into the red car, whoever may own that old thing"])  # fmt: skip
    assert hit.run == "do i get into the red"
