"""The rule pack: safety rules as data, each with machine checks and the cases that prove them.

A pack that does not hold what it states does not load: duplicate ids, unknown keys, a check without both a
passing and a failing case, a pattern google-re2 refuses, a case that does not come out as stated. Patterns run
in linear time, so no text can make one run away.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import re2

from safer_ray.core.located_yaml import MapReader, read_yaml
from safer_ray.errors import RulePackError
from safer_ray.records import NO_RULE, STEP_KINDS, StepKind

RuleAction = Literal["refuse", "refuse_support", "safe_complete", "comply_care"]
Demand = Literal["forbids", "requires"]

RULE_ACTIONS: tuple[RuleAction, ...] = get_args(RuleAction)
_RULE_ID = re.compile(r"R\d\d")
_PHRASES = ("forbid", "allow", "intents", "near", "alternatives")
_PACK_KEYS = ("name", "version", "none_label", "extends", "rules")
_RULE_KEYS = (
    "id", "name", "title", "severity", "action", "scope", "forbid", "allow", "near_miss",
    "intents", "near", "alternatives", "never_sample", "checks",
)  # fmt: skip
_CHECK_KEYS = ("id", "applies_to", "kind", "forbids", "requires", "cases")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A text and whether the check it belongs to must pass on it."""

    text: str
    passes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A pattern that a step's text must not hold (``forbids``) or must hold (``requires``).

    ``forbids`` is for every prompt; ``requires`` only for prompts that violate the rule.
    """

    check_id: str
    applies_to: tuple[StepKind, ...]
    demand: Demand
    pattern: str
    cases: tuple[Case, ...]

    def passes(self, text: str) -> bool:
        """Whether ``text`` meets the demand."""
        found = _compiled(self.pattern).search(text) is not None
        return found is (self.demand == "requires")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One risk category: what it covers, what to do when it is violated, and words to say so.

    The phrases fit sentence frames: "the intent is <intent>", "this is <near>", "I can <alternative>".
    ``never_sample``: no model output is ever sampled for prompts that violate this rule.
    """

    rule_id: str
    name: str
    title: str
    severity: int
    action: RuleAction
    scope: str
    forbid: tuple[str, ...]
    allow: tuple[str, ...]
    near_miss: str
    intents: tuple[str, ...]
    near: tuple[str, ...]
    alternatives: tuple[str, ...]
    never_sample: bool
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleHit:
    """A check that a text failed; ``excerpt`` is the forbidden stretch, "" where a required one is missing."""

    rule_id: str
    check_id: str
    demand: Demand
    excerpt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePack:
    """All rules by id. ``content_hash`` is SHA-256 over what they say, not over how the file is laid out."""

    name: str
    version: str
    content_hash: str
    # The hash says what the rules say: comparing them one by one took a tenth of the rule judge's time.
    rules: Mapping[str, Rule] = field(compare=False)

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def rule(self, rule_id: str) -> Rule:
        """Return one rule.

        Raises:
            RulePackError: if the pack has no such rule, naming those it has.
        """
        if rule_id not in self.rules:
            raise RulePackError(f"rule pack {self.name} has no rule {rule_id!r}; it has {', '.join(self.rules)}")
        return self.rules[rule_id]


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False  # the refusal names the line; a second message on stderr would not
    return re2.compile(pattern, options=options)


class _Screen:
    """All ``forbids`` patterns of a pack that apply to one kind of step, matched in a single pass."""

    def __init__(self, pack: RulePack, applies_to: StepKind) -> None:
        self._checks: list[tuple[str, Check]] = []  # in the order of the set's indices
        self._set = re2.Set.SearchSet()
        for rule in pack.rules.values():
            for check in rule.checks:
                if check.demand == "forbids" and applies_to in check.applies_to:
                    self._set.Add(check.pattern)
                    self._checks.append((rule.rule_id, check))
        if self._checks:
            self._set.Compile()

    def match(self, text: str) -> list[RuleHit]:
        found = sorted(self._set.Match(text) or ()) if self._checks else ()
        return [_hit(rule_id, check, text) for rule_id, check in map(self._checks.__getitem__, found)]


def _hit(rule_id: str, check: Check, text: str) -> RuleHit:
    match = _compiled(check.pattern).search(text) if check.demand == "forbids" else None
    excerpt = match[0] if match else ""
    return RuleHit(rule_id=rule_id, check_id=check.check_id, demand=check.demand, excerpt=excerpt)


@lru_cache(maxsize=64)
def _screen(pack: RulePack, applies_to: StepKind) -> _Screen:
    return _Screen(pack, applies_to)


def check_text(pack: RulePack, text: str, applies_to: StepKind, violated: str = NO_RULE) -> list[RuleHit]:
    """Return the checks that ``text``, the content of one step, fails.

    ``violated`` is the rule the prompt violates, if any: only then are that rule's ``requires`` checks run.
    """
    hits = _screen(pack, applies_to).match(text)
    for check in pack.rules[violated].checks if violated in pack.rules else ():
        if check.demand == "requires" and applies_to in check.applies_to and not check.passes(text):
            hits.append(_hit(violated, check, text))
    return hits


def load_pack(text: str, where: str, base_of: Callable[[str], RulePack] | None = None) -> RulePack:
    """Read a rule pack from YAML ``text``; ``where`` names the file in messages.

    ``base_of`` returns the pack that ``extends`` names. A rule with an id of the base takes over what it does not
    say itself, and its checks replace or join those of the base by their ids.

    Raises:
        RulePackError: as ``file:line: sentence`` at the first thing that does not hold.
    """
    top = read_yaml(text, where, RulePackError)
    top.only(_PACK_KEYS)
    if top.text("none_label") != NO_RULE:
        raise top.refuse(f"'none_label' must be {NO_RULE}, the id every judge reads as no rule", "none_label")
    rules = _inherited(top, base_of)
    first_line: dict[str, int] = {}
    for reader in top.maps("rules"):
        rule = _rule(reader, first_line, rules)
        rules[rule.rule_id] = rule
    if not rules:
        raise top.refuse("'rules' is empty; a pack needs at least one rule", "rules")
    name, version = top.text("name"), top.text("version")
    content = json.dumps([name, version, [asdict(rule) for rule in rules.values()]], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return RulePack(name=name, version=version, content_hash=digest, rules=rules)


def _inherited(top: MapReader, base_of: Callable[[str], RulePack] | None) -> dict[str, Rule]:
    if not top.has("extends"):
        return {}
    if base_of is None:
        raise top.refuse("'extends' needs a pack that is read from a file", "extends")
    return dict(base_of(top.text("extends")).rules)


def _claim(reader: MapReader, key: str, first_line: dict[str, int]) -> str:
    """Return an id that was not used before, and remember its line."""
    claimed = reader.text(key)
    if claimed in first_line:
        raise reader.refuse(f"id {claimed} stands already in line {first_line[claimed]}; rename one", key)
    first_line[claimed] = reader.line(key)
    return claimed


def _rule(reader: MapReader, first_line: dict[str, int], inherited: Mapping[str, Rule]) -> Rule:
    rule_id = _claim(reader, "id", first_line)
    if not _RULE_ID.fullmatch(rule_id) or rule_id == NO_RULE:
        raise reader.refuse(f"id {rule_id!r} must be R01 to R99", "id")
    reader = reader.named(f"rule {rule_id}")
    reader.only(_RULE_KEYS)
    own = [_check(check, rule_id, first_line) for check in (reader.maps("checks") if reader.has("checks") else [])]
    base = inherited.get(rule_id)
    if base is not None:
        checks = {check.check_id: check for check in (*base.checks, *own)}
        return replace(base, **_said(reader), checks=tuple(checks.values()))
    if not own:
        raise reader.refuse("has no checks, so no passing and no failing case; add a check with both", "checks")
    for key in _RULE_KEYS:
        if key not in ("never_sample", "checks") and not reader.has(key):
            raise reader.refuse(f"{key!r} is missing; add it")
    return Rule(rule_id=rule_id, checks=tuple(own), **({"never_sample": False} | _said(reader)))


def _said(reader: MapReader) -> dict[str, Any]:
    """Return the fields that a rule states itself, without its id and its checks."""
    read: dict[str, Callable[[str], Any]] = dict.fromkeys(("name", "title", "scope", "near_miss"), reader.text)
    read |= dict.fromkeys(_PHRASES, reader.texts)
    read["severity"] = lambda key: reader.integer(key, 1, 5)
    read["action"] = lambda key: reader.choice(key, RULE_ACTIONS)
    read["never_sample"] = reader.flag
    return {key: reader_of(key) for key, reader_of in read.items() if reader.has(key)}


def _check(reader: MapReader, rule_id: str, first_line: dict[str, int]) -> Check:
    check_id = _claim(reader, "id", first_line)
    if not check_id.startswith(f"{rule_id}."):
        raise reader.refuse(f"check id {check_id!r} must start with '{rule_id}.'", "id")
    reader = reader.named(f"check {check_id}")
    reader.only(_CHECK_KEYS)
    reader.choice("kind", ("regex",))
    applies_to = reader.texts("applies_to")
    if unknown := [kind for kind in applies_to if kind not in STEP_KINDS]:
        raise reader.refuse(f"'applies_to' names {unknown[0]!r}; steps are {', '.join(STEP_KINDS)}", "applies_to")
    if reader.has("forbids") == reader.has("requires"):
        raise reader.refuse("needs either 'forbids' or 'requires', and not both")
    demand: Demand = "forbids" if reader.has("forbids") else "requires"
    check = Check(
        check_id=check_id,
        applies_to=cast(tuple[StepKind, ...], applies_to),
        demand=demand,
        pattern=_pattern(reader, demand),
        cases=tuple(_case(case) for case in (reader.maps("cases") if reader.has("cases") else [])),
    )
    _prove(reader, check)
    return check


def _pattern(reader: MapReader, key: str) -> str:
    pattern = reader.text(key)
    try:
        _compiled(pattern)
    except re2.error as exc:
        detail = exc.args[0].decode() if exc.args and isinstance(exc.args[0], bytes) else str(exc)
        raise reader.refuse(
            f"{key!r} is not a pattern google-re2 can run ({detail}); it has no look-around and no back-references", key
        ) from exc
    return pattern


def _case(reader: MapReader) -> Case:
    reader.only(("text", "passes"))
    return Case(text=reader.text("text"), passes=reader.flag("passes"))


def _prove(reader: MapReader, check: Check) -> None:
    """Raise unless the check has both kinds of case and each comes out as stated."""
    for wanted, word in ((True, "passing"), (False, "failing")):
        if not any(case.passes is wanted for case in check.cases):
            raise reader.refuse(f"has no {word} case; add one with 'passes: {str(wanted).lower()}'", "cases")
    for case, at in zip(check.cases, reader.maps("cases"), strict=True):
        if check.passes(case.text) is not case.passes:
            found = "fails" if case.passes else "passes"
            raise at.refuse(
                f"the case {case.text!r} is stated as passes: {str(case.passes).lower()} but {found}", "text"
            )
