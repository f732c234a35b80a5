"""What may lie beside a ``pack.yaml`` for the teachers: ``cues.yaml`` and hand-written answers.

Both are optional. ``cues.yaml`` maps each rule to its phrases and each phrase to words that point to it;
``prompts/*_answers.jsonl`` holds one ``{"id", "answer"}`` a line for prompts no model is sampled on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safer_ray.backends.rule_packs import lineage, read_pack
from safer_ray.core.cues import CueBook
from safer_ray.core.rules import RulePack
from safer_ray.errors import RulePackError, boundary

_EVERYDAY = "everyday"


def read_cues(folder: Path, pack: RulePack) -> CueBook:
    """Return the cues beside a pack and beside the packs it extends, empty if there are none.

    A phrase that an extending pack has replaced loses its cues.

    Raises:
        RulePackError: if a file cannot be read, or names a rule or a phrase its pack does not have.
    """
    books = [_cues(each, pack if each == folder else None) for each in _folders(folder)]
    known = {phrase for rule in pack.rules.values() for phrase in (*rule.intents, *rule.near)}
    return CueBook(
        phrases={phrase: cues for book in books for phrase, cues in book.phrases.items() if phrase in known},
        everyday={phrase: cues for book in books for phrase, cues in book.everyday.items()},
    )


def _folders(folder: Path) -> list[Path]:
    """Return the folders of the packs that the one in ``folder`` is made of, its own last."""
    if not (folder / "pack.yaml").is_file():
        return [folder]
    return [*(path.parent for path in lineage(folder / "pack.yaml")[:-1]), folder]


def _cues(folder: Path, pack: RulePack | None) -> CueBook:
    """Return the cues in one folder; ``pack`` is None if they must be checked against the pack of that folder."""
    path = folder / "cues.yaml"
    if not path.is_file():
        return CueBook()
    from ruamel.yaml import YAML

    owner = pack or read_pack(folder)
    with boundary(RulePackError, str(path)):
        content: dict[str, dict[str, Any]] = YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {}
        everyday = {phrase: tuple(str(words).split()) for phrase, words in content.pop(_EVERYDAY, {}).items()}
        phrases: dict[str, tuple[str, ...]] = {}
        for rule_id, lines in content.items():
            rule = owner.rule(rule_id)
            for phrase, words in lines.items():
                if phrase not in (*rule.intents, *rule.near):
                    raise RulePackError(f"{path}: {rule_id} has no phrase {phrase!r}; copy it from pack.yaml")
                phrases[phrase] = tuple(str(words).split())
    return CueBook(phrases=phrases, everyday=everyday)


def read_examples(folder: Path, split: str = "train") -> list[dict[str, str]]:
    """Return the prompts beside a pack and the packs it extends: id, category, label, text as written and plain.

    Only rows of one split: nothing may be fitted on any but ``train``, which is what a row without one belongs to.

    Raises:
        RulePackError: naming the line that is not a labelled prompt.
    """
    return [row for each in _folders(folder) for row in _examples(each / "prompts", split)]


def _examples(folder: Path, split: str) -> Iterator[dict[str, str]]:
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem.endswith("_answers"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            with boundary(RulePackError, f"{path}:{number}"):
                row = json.loads(line)
                if row.get("split", "train") == split:
                    plain = str(row.get("plain", row["prompt"]))
                    yield {key: str(row[key]) for key in ("id", "category", "label", "prompt")} | {"plain": plain}


def read_written_answers(folder: Path) -> dict[str, str]:
    """Return prompt id -> hand-written answer, from every ``*_answers.jsonl`` of the pack and those it extends.

    Raises:
        RulePackError: naming the line that is not ``{"id", "answer"}``.
    """
    return {prompt_id: text for each in _folders(folder) for prompt_id, text in _answers(each / "prompts")}


def _answers(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*_answers.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            with boundary(RulePackError, f"{path}:{number}"):
                row = json.loads(line)
                yield str(row["id"]), str(row["answer"]).strip()
