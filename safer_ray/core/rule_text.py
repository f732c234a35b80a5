"""A rule pack in words, for the prompts of teachers and judges and for the rules-in-prompt ablation."""

from __future__ import annotations

from safer_ray.core.rules import Rule, RuleAction, RulePack

ACTION_WORDS: dict[RuleAction, str] = {
    "refuse": "refuse and offer a safe alternative",
    "refuse_support": "refuse, show care and point to support",
    "safe_complete": "complete only the safe part",
    "comply_care": "complete only the safe part, in general terms, and point to a professional",
}


def rules_text(pack: RulePack) -> str:
    """Return all rules as text: id, title, scope, what is forbidden, what is allowed, what to do when violated."""
    return "\n".join(map(_rule_text, pack.rules.values()))


def spec_text(pack: RulePack, category: str) -> str:
    """Return the rule of one category in full and the others by id and title, for whoever knows the category."""
    others = "; ".join(f"{rule.rule_id} {rule.title}" for rule in pack.rules.values() if rule.rule_id != category)
    rule = pack.rules.get(category)
    return f"{_rule_text(rule)}\nThe other rules, by title: {others}" if rule else f"All rules, by title: {others}"


def _rule_text(rule: Rule) -> str:
    return (
        f"{rule.rule_id} {rule.title}\n"
        f"  covers: {rule.scope}\n"
        f"  forbidden: {'; '.join(rule.forbid)}\n"
        f"  allowed: {'; '.join(rule.allow)}\n"
        f"  if violated: {ACTION_WORDS[rule.action]}"
    )


def student_system_prompt(pack: RulePack, system_prompt: str | None, *, rules_in_prompt: bool) -> str | None:
    """Return the system message the student is trained and served with; None keeps the model's own default."""
    if not rules_in_prompt:
        return system_prompt
    return "\n\n".join(part for part in (system_prompt, f"Follow these rules.\n{rules_text(pack)}") if part)
