"""The card of a run's synthetic traces: who wrote them, what each filter left, what they consist of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from safer_ray.audit_page import write_aside
from safer_ray.core.trace_audit import diversity
from safer_ray.records import Prompt, TraceExample
from safer_ray.rundir import RunDir
from safer_ray.tables import from_table, read_table


def write_data_card(summary: Mapping[str, Any], run_dir: RunDir) -> None:
    """Write ``traces/card.md`` once the traces of the run are there; before that, nothing.

    Raises:
        DataError: if the traces cannot be read or the card cannot be written.
    """
    if not run_dir.traces.exists() or not run_dir.prompts.exists():
        return
    examples = from_table(read_table(run_dir.traces), TraceExample)
    prompts = {prompt.prompt_id: prompt for prompt in from_table(read_table(run_dir.prompts), Prompt)}
    write_aside(run_dir.traces.with_name("card.md"), data_card(summary, examples, prompts))


def data_card(summary: Mapping[str, Any], examples: Sequence[TraceExample], prompts: Mapping[str, Prompt]) -> str:
    """Return the card as Markdown. It quotes no prompt and no trace."""
    traces = summary.get("traces", {})
    pack = summary.get("rule_pack", {})
    about = [prompts[example.prompt_id] for example in examples]
    lines = [
        f"# Synthetic traces of {summary.get('name', 'a run')}",
        "",
        f"- traces: {len(examples)}, one prompt each: {len({prompt.prompt_id for prompt in about})}",
        f"- written by: {_counts(example.teacher for example in examples)}",
        f"- for: {summary.get('model', '')}, rules {pack.get('name', '')} {pack.get('hash', '')[:12]}, "
        f"seed {summary.get('seed', '')}",
        f"- tokens per trace, mean: {_mean(len(example.completion_ids) for example in examples)}",
        "",
        "## What became of them",
        "",
        "| step | left |",
        "|---|---|",
        *[f"| train prompt left out: {why} | {count} |" for why, count in summary.get("decontaminated", {}).items()],
        f"| written and accepted | {traces.get('accepted', 0)} |",
        *[f"| draft rejected: {_cell(reason)} | {count} |" for reason, count in traces.get("rejected", {}).items()],
        *[
            f"| after {row['name']} | {row['kept']} of {row['given']} ({row['kept_unsafe']} unsafe) |"
            for row in traces.get("filters", ())
        ],
        "",
        "## What they consist of",
        "",
        f"- labels: {_counts(prompt.label for prompt in about)}",
        f"- categories: {_counts(prompt.category for prompt in about)}",
        f"- forms, unsafe: {_counts(prompt.form for prompt in about if prompt.label == 'unsafe')}",
        f"- forms, others: {_counts(prompt.form for prompt in about if prompt.label != 'unsafe')}",
        f"- sources: {_counts(prompt.source for prompt in about)}",
        *_variety(examples, about, int(summary.get("seed") or 0)),
    ]
    return "\n".join(lines) + "\n"


def _variety(examples: Sequence[TraceExample], about: Sequence[Prompt], seed: int) -> list[str]:
    assessments = ["".join(step.text for step in example.steps if step.kind == "assessment") for example in examples]
    traces = ["".join(step.text for step in example.steps if step.kind != "response") for example in examples]
    found = diversity(assessments, traces, [prompt.category for prompt in about], seed=seed)
    lines = []
    if found.self_bleu is not None:
        lines.append(f"- self-BLEU of assessments: {found.self_bleu:.2f} (1: all alike)")
    if found.recovery and found.recovery.right.share is not None:
        right = found.recovery.right
        lines.append(
            f"- category told from the assessment alone: {right.right} of {right.n}, chance {found.recovery.chance:.2f}"
        )
    return lines


def _counts(values: Any) -> str:
    found = sorted(Counter(map(str, values)).items())
    return ", ".join(f"{_cell(name)} {count}" for name, count in found) or "none"


def _cell(text: str) -> str:
    """Return text that cannot break a table or open markup: sources and reasons may quote what somebody else wrote."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return plain.replace("|", "/").replace("<", "(").replace(">", ")").replace("`", "'")[:120]


def _mean(values: Any) -> str:
    numbers = list(values)
    return f"{sum(numbers) / len(numbers):.0f}" if numbers else "none"
