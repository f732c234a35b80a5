"""Whether a trace says what is known of its prompt: a teacher's trace that does not is not taught."""

from __future__ import annotations

from safer_ray.core.rules import RulePack, check_text
from safer_ray.core.stance import calibration_action, verification_stance
from safer_ray.core.trace import Trace
from safer_ray.records import NO_RULE, STEP_KINDS, Prompt

_STRICT = ("refuse", "safe_complete")


def disagreement(prompt: Prompt, trace: Trace, pack: RulePack) -> str:
    """Return the first reason why ``trace`` cannot be taught for ``prompt``, "" if there is none.

    Reasons are few and fixed, so that rejected traces can be counted by them.
    """
    unsafe = prompt.label == "unsafe"
    stance = verification_stance(trace.verification)
    if stance.violated is None:
        return "the verification takes no stance"
    if stance.violated is not unsafe:
        return "the verification contradicts the label"
    if unsafe and stance.rule_id != prompt.gold_rule:
        return "the verification cites another rule"
    action = calibration_action(trace.calibration)
    if action is None:
        return "the calibration takes no stance"
    if (action in _STRICT) is not unsafe:
        return "the calibration contradicts the label"
    violated = prompt.gold_rule if unsafe else NO_RULE
    for kind, text in zip(STEP_KINDS, trace.steps, strict=True):
        if check_text(pack, text, kind, violated):
            return f"the {kind} fails a check of the rule pack"
    return ""
