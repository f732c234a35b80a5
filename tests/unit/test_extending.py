"""A pack extends another: what it says itself counts, the rest is taken over, circles are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_packs import HEAD, made_pack, made_rule

from safer_ray.backends.pack_extras import read_cues, read_examples, read_written_answers
from safer_ray.backends.rule_packs import lineage, pack_path, read_pack
from safer_ray.core.rules import load_pack
from safer_ray.errors import RulePackError

DEFAULT = read_pack("default")
NEW_RULE = made_rule("R20")


def _write(folder: Path, extends: str, rules: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pack.yaml").write_text(f"{HEAD}extends: {extends}\nrules:\n{rules}", encoding="utf-8")
    return folder


def test_an_extending_pack_adds_rules_and_overrides_by_id_what_it_says(tmp_path: Path) -> None:
    stricter = "- {id: R02, severity: 4, title: dangerous science}\n"
    pack = read_pack(_write(tmp_path / "mine", "default", stricter + NEW_RULE))
    assert list(pack.rules) == [*DEFAULT.rules, "R20"]
    assert (pack.rule("R02").severity, pack.rule("R02").title) == (4, "dangerous science")
    assert pack.rule("R02").checks == DEFAULT.rule("R02").checks
    assert pack.rule("R02").intents == DEFAULT.rule("R02").intents
    assert pack.rule("R03") == DEFAULT.rule("R03")
    assert pack.content_hash != DEFAULT.content_hash


def test_checks_replace_those_of_the_base_by_id_and_join_the_others(tmp_path: Path) -> None:
    check = """\
- id: R02
  checks:
  - {id: %s, applies_to: [response], kind: regex, forbids: zebra,
     cases: [{text: A zebra., passes: false}, {text: No., passes: true}]}
"""
    replaced = read_pack(_write(tmp_path / "one", "default", check % "R02.a")).rule("R02").checks
    joined = read_pack(_write(tmp_path / "two", "default", check % "R02.z")).rule("R02").checks
    assert [(each.check_id, each.pattern) for each in replaced] == [("R02.a", "zebra")]
    assert [each.check_id for each in joined] == ["R02.a", "R02.z"]


def test_a_change_of_the_base_changes_the_hash_of_the_pack_that_extends_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    text = made_pack(NEW_RULE)
    (base / "pack.yaml").write_text(text, encoding="utf-8")
    mine = _write(tmp_path / "mine", "../base", "- {id: R20, name: gates}\n")
    before = read_pack(mine).content_hash
    (base / "pack.yaml").write_text(text.replace("severity: 3", "severity: 4"), encoding="utf-8")
    assert read_pack(mine).content_hash != before


def test_packs_in_a_circle_are_refused_naming_the_files(tmp_path: Path) -> None:
    first = _write(tmp_path / "first", "../second", "- {id: R20, name: gates}\n")
    second = _write(tmp_path / "second", "../first", "- {id: R20, name: gates}\n")
    with pytest.raises(RulePackError, match="in a circle") as caught:
        read_pack(first)
    assert str(first / "pack.yaml") in str(caught.value)
    assert str(second / "pack.yaml") in str(caught.value)


def test_a_pack_that_extends_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RulePackError, match=r"pack.yaml: 'extends': rule pack 'defualt': no such file"):
        read_pack(_write(tmp_path / "mine", "defualt", NEW_RULE))
    with pytest.raises(RulePackError, match=r"x.yaml:4: 'extends' needs a pack that is read from a file"):
        load_pack(f"{HEAD}extends: default\nrules:\n{NEW_RULE}", "x.yaml")


def test_what_is_partly_said_is_an_override_only_where_there_is_something_to_override(tmp_path: Path) -> None:
    with pytest.raises(RulePackError, match="rule R20: has no checks"):
        read_pack(_write(tmp_path / "mine", "default", "- {id: R20, name: gates}\n"))


def test_cues_answers_and_prompts_of_the_base_are_taken_over(tmp_path: Path) -> None:
    folder = _write(tmp_path / "mine", "default", NEW_RULE + "- {id: R02, near: [about school only]}\n")
    base = pack_path("default").parent
    (folder / "prompts").mkdir()
    row = '{"id": "R20-001-u", "label": "unsafe", "category": "R20", "split": "%s", "prompt": "Open her door."}\n'
    (folder / "prompts" / "R20.jsonl").write_text(row % "train" + row % "test", encoding="utf-8")
    assert lineage(folder) == (base / "pack.yaml", folder / "pack.yaml")
    cues, base_cues = read_cues(folder, read_pack(folder)), read_cues(base, DEFAULT)
    assert set(base_cues.phrases) - set(cues.phrases) == set(DEFAULT.rule("R02").near)
    assert read_written_answers(folder) == read_written_answers(base)
    examples = read_examples(folder)
    assert len(examples) == len(read_examples(base)) + 1
    own = {
        "id": "R20-001-u",
        "label": "unsafe",
        "category": "R20",
        "prompt": "Open her door.",
        "plain": "Open her door.",
    }
    assert examples[-1] == own
    assert read_examples(folder, "test")[-1] == own
