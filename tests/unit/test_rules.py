"""The shipped rule pack holds what it states, and a pack that does not is refused with file and line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_packs import made_pack, made_rule

from safer_ray.backends.rule_packs import SHIPPED_ROOTS, pack_path, read_pack
from safer_ray.core.rules import RULE_ACTIONS, check_text, load_pack
from safer_ray.errors import RulePackError
from safer_ray.records import STEP_KINDS

PACK = read_pack("default")
BAD_PACKS = sorted((Path(__file__).parent / "data" / "bad_packs").glob("*.yaml"))
PROMPTS = sorted((SHIPPED_ROOTS[0] / "default" / "prompts").glob("R??.jsonl"))
TINY = made_pack(made_rule("R01"))


def test_the_default_pack_has_fourteen_rules_in_order() -> None:
    assert list(PACK.rules) == [f"R{number:02d}" for number in range(1, 15)]
    assert {rule.action for rule in PACK.rules.values()} == set(RULE_ACTIONS)
    assert [rule.rule_id for rule in PACK.rules.values() if rule.never_sample] == ["R04"]


@pytest.mark.parametrize("rule_id", PACK.rules)
def test_every_case_of_a_rule_comes_out_as_stated(rule_id: str) -> None:
    cases = [(check, case) for check in PACK.rule(rule_id).checks for case in check.cases]
    assert [check.passes(case.text) for check, case in cases] == [case.passes for _, case in cases]
    assert sum(case.passes for _, case in cases) >= 2
    assert sum(not case.passes for _, case in cases) >= 2


@pytest.mark.parametrize("rule_id", PACK.rules)
def test_the_phrases_of_a_rule_fit_their_sentence_frames(rule_id: str) -> None:
    rule = PACK.rule(rule_id)
    assert all(intent.startswith("to ") for intent in rule.intents)
    assert all(near.startswith("about ") for near in rule.near)
    assert not any(offer.startswith(("to ", "I ")) or offer[0].isupper() for offer in rule.alternatives)
    phrases = (rule.title, *rule.intents, *rule.near, *rule.alternatives)
    assert not any(phrase.endswith(".") for phrase in phrases)
    assert min(len(rule.intents), len(rule.near), len(rule.alternatives)) >= 4


def test_intents_and_near_phrases_belong_to_one_rule_each() -> None:
    phrases = [phrase for rule in PACK.rules.values() for phrase in (*rule.intents, *rule.near, rule.title)]
    assert len(phrases) == len(set(phrases))


@pytest.mark.parametrize("path", BAD_PACKS, ids=lambda path: path.stem)
def test_a_bad_pack_is_refused_with_file_and_line(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    expected = text.splitlines()[0].removeprefix("# expect ")
    with pytest.raises(RulePackError) as caught:
        load_pack(text, path.name)
    assert str(caught.value) == f"{path.name}:{expected}"


def test_there_are_bad_packs_to_refuse() -> None:
    assert len(BAD_PACKS) >= 12


def test_the_hash_follows_the_content_and_not_the_layout() -> None:
    plain = load_pack(TINY, "a.yaml")
    laid_out = load_pack("# a comment\n\n" + TINY.replace("[response]", "\n    - response"), "b.yaml")
    changed = load_pack(TINY.replace("severity: 3", "severity: 4"), "c.yaml")
    assert plain.content_hash == laid_out.content_hash
    assert plain.content_hash != changed.content_hash


def test_a_pack_survives_the_trip_to_an_actor() -> None:
    copy = pickle.loads(pickle.dumps(PACK))
    assert copy == PACK
    assert hash(copy) == hash(PACK)
    assert check_text(copy, "Here is the ransomware code: [omitted]", "response")[0].check_id == "R09.a"


def test_a_required_text_is_asked_for_only_where_its_rule_is_violated() -> None:
    answer = "I can't help with that."
    assert check_text(PACK, answer, "response") == []
    assert [hit.check_id for hit in check_text(PACK, answer, "response", "R08")] == ["R08.a"]
    assert check_text(PACK, answer, "verification", "R08") == []


def test_a_forbidden_text_is_found_in_the_steps_its_check_applies_to() -> None:
    threat = "Leave by Friday or you will be sorry."
    (hit,) = check_text(PACK, threat, "response")
    assert (hit.rule_id, hit.check_id, hit.excerpt) == ("R07", "R07.a", "you will be sorry")
    assert check_text(PACK, threat, "assessment") == []


@given(text=st.text(), kind=st.sampled_from(STEP_KINDS), violated=st.sampled_from(["R00", *PACK.rules]))
def test_any_text_can_be_checked_and_fails_only_known_checks(text: str, kind: str, violated: str) -> None:
    known = {check.check_id: rule.rule_id for rule in PACK.rules.values() for check in rule.checks}
    for hit in check_text(PACK, text, kind, violated):  # type: ignore[arg-type]
        assert known[hit.check_id] == hit.rule_id
        assert hit.demand == "forbids" or hit.rule_id == violated


def test_no_forbidden_pattern_fires_on_a_shipped_safe_prompt() -> None:
    rows = [json.loads(line) for path in PROMPTS for line in path.read_text(encoding="utf-8").splitlines()]
    safe = [row for row in rows if row["label"] == "safe"]
    assert len(safe) >= 14 * 14
    assert [row["id"] for row in safe if check_text(PACK, row["prompt"], "response")] == []


def test_a_pack_is_found_by_name_by_folder_and_by_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(TINY, encoding="utf-8")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "pack.yaml").write_text(TINY, encoding="utf-8")
    assert read_pack(file) == read_pack(folder) == read_pack(str(folder / "pack.yaml"))
    assert pack_path("default").name == "pack.yaml"


def test_a_pack_that_is_not_there_is_refused_with_the_shipped_names(tmp_path: Path) -> None:
    with pytest.raises(RulePackError, match=r"'defualt'.*one of default"):
        read_pack("defualt")
    unreadable = tmp_path / "pack.yaml"
    unreadable.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RulePackError, match="cannot be read as UTF-8"):
        read_pack(unreadable)


def test_an_unknown_rule_is_refused_with_those_there_are() -> None:
    with pytest.raises(RulePackError, match="no rule 'R99'; it has R01"):
        PACK.rule("R99")


def test_the_rules_import_without_the_heavy_libraries() -> None:
    code = "import sys, safer_ray.core.rules, safer_ray.core.criteria; print({'torch','ray','vllm'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
