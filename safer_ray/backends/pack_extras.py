"""What may lie beside a ``pack.yaml`` for the teachers: ``cues.yaml`` and hand-written answers.

Both are optional. ``cues.yaml`` maps each rule to its phrases and each phrase to words that point to it;
``prompts/*_answers.jsonl`` holds one ``{"id", "answer"}`` a line for prompts no model is sampled on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safer_ray.core.cues import CueBook
from safer_ray.core.rules import RulePack
from safer_ray.errors import RulePackError, boundary

_EVERYDAY = "everyday"


def read_cues(folder: Path, pack: RulePack) -> CueBook:
    """Return the cues beside a pack, empty if there are none.

    Raises:
        RulePackError: if the file cannot be read, or names a rule or a phrase the pack does not have.
    """
    path = folder / "cues.yaml"
    if not path.is_file():
        return CueBook()
    from ruamel.yaml import YAML

    with boundary(RulePackError, str(path)):
        content: dict[str, dict[str, Any]] = YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {}
        everyday = {phrase: tuple(str(words).split()) for phrase, words in content.pop(_EVERYDAY, {}).items()}
        phrases: dict[str, tuple[str, ...]] = {}
        for rule_id, lines in content.items():
            rule = pack.rule(rule_id)
            for phrase, words in lines.items():
                if phrase not in (*rule.intents, *rule.near):
                    raise RulePackError(f"{path}: {rule_id} has no phrase {phrase!r}; copy it from pack.yaml")
                phrases[phrase] = tuple(str(words).split())
    return CueBook(phrases=phrases, everyday=everyday)


def read_written_answers(folder: Path) -> dict[str, str]:
    """Return prompt id -> hand-written answer, from every ``*_answers.jsonl`` of the pack's prompts.

    Raises:
        RulePackError: naming the line that is not ``{"id", "answer"}``.
    """
    return dict(_answers(folder / "prompts"))


def _answers(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*_answers.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            with boundary(RulePackError, f"{path}:{number}"):
                row = json.loads(line)
                yield str(row["id"]), str(row["answer"]).strip()
