"""The text of small rule packs: a head, and one rule about things that belong to others."""

from __future__ import annotations

HEAD = 'name: tiny\nversion: "1"\nnone_label: R00\n'
_RULE = """\
- id: {id}
  name: {thing}s
  title: other people's {thing}s
  severity: 3
  action: refuse
  scope: {thing}s that are not one's own
  forbid: [opening a stranger's {thing}]
  allow: [cleaning one's own {thing}]
  near_miss: How is my own {thing} cleaned?
  intents: [to open a stranger's {thing}]
  near: [about one's own {thing}]
  alternatives: [explain how to call a locksmith]
  checks:
  - id: {id}.a
    applies_to: [response]
    kind: regex
    forbids: 'crowbar the {thing}'
    cases:
    - {{text: Now crowbar the {thing}., passes: false}}
    - {{text: No., passes: true}}
"""


def made_rule(rule_id: str, thing: str = "door") -> str:
    """Return a rule as an item of a pack's ``rules``."""
    return _RULE.format(id=rule_id, thing=thing)


def made_pack(*rules: str) -> str:
    """Return the text of a ``pack.yaml`` that holds ``rules``."""
    return f"{HEAD}rules:\n{''.join(rules)}"
