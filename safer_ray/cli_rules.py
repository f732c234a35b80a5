"""``safer-ray rules``: check a rule pack, ask it why, compare two, see what it covers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.table import Table

from safer_ray.errors import ConfigError, RulePackError
from safer_ray.records import NO_RULE
from safer_ray.terminal import out, say

if TYPE_CHECKING:
    from safer_ray.backends.classifier import Classifier
    from safer_ray.backends.encoders import EncoderName
    from safer_ray.rule_review import Explanation

app = typer.Typer(name="rules", help="Check a rule pack, ask it why, compare two.", no_args_is_help=True)

_ENCODERS = ("auto", "minilm", "characters")
_SHOWN_SCORES = 3

PackArg = Annotated[str, typer.Argument(help="a shipped pack such as default, or a path")]
PackOpt = Annotated[str, typer.Option("--pack", help="a shipped pack such as default, or a path")]
EncoderOpt = Annotated[str, typer.Option("--encoder", help=" | ".join(_ENCODERS))]


@app.command()
def lint(pack: PackArg = "default") -> None:
    """Load a pack and say what could be better; exit code 1 if anything could."""
    from safer_ray.backends.rule_packs import read_pack
    from safer_ray.rule_review import lint as faults_of

    faults = faults_of(pack)
    for fault in faults:
        say(fault)
    loaded = read_pack(pack)
    say(f"{loaded.name} {loaded.version}: {len(loaded.rules)} rules, {len(faults)} remarks")
    say(f"hash {loaded.content_hash}")
    if faults:
        raise typer.Exit(1)


@app.command("test")
def run_cases(pack: PackArg = "default", encoder: EncoderOpt = "auto") -> None:
    """Run every case of a pack, then classify the test prompts that lie beside it."""
    from safer_ray.backends.pack_extras import read_examples
    from safer_ray.backends.rule_packs import pack_path, read_pack
    from safer_ray.rule_review import marks

    loaded = read_pack(pack)  # runs every case
    cases = [case for rule in loaded.rules.values() for check in rule.checks for case in check.cases]
    say(f"{loaded.name}: {len(cases)} cases of {len(loaded.rules)} rules come out as stated")
    rows = read_examples(pack_path(pack).parent, "test")
    if not rows:
        say("no test prompts lie beside the pack")
        return
    classifier = _classifier(pack, encoder)
    found = marks(classifier, rows)
    say(
        f"{found.unsafe} unsafe and {found.safe} safe test prompts, encoder {classifier.encoder}: the right rule is "
        f"first for {found.top1}, among three for {found.top3}; area under the ROC curve {found.area:.3f}",
    )
    table: dict[str, Counter[str]] = {}
    for (wanted, verdict), count in found.confusion.items():
        table.setdefault(wanted, Counter())[verdict] += count
    _print_table(table, "violates")


@app.command()
def explain(
    text: Annotated[str, typer.Argument(help="a prompt")],
    pack: PackOpt = "default",
    encoder: EncoderOpt = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print all of it as JSON")] = False,
) -> None:
    """Say which rule a prompt violates, on which words, why, and which disguises were taken off."""
    from safer_ray.rule_review import explain as explanation_of

    found = explanation_of(pack, text, _encoder(encoder))
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n")
        return
    for line in _explained(found):
        say(line)


def _explained(found: Explanation) -> list[str]:
    said = found.classification
    none = said.rule_id == NO_RULE
    lines = [f"verdict: {'R00, no rule passes its threshold' if none else said.rule_id}"]
    lines += [
        f"  {rule_id} scores {score:.2f}, threshold {found.thresholds[rule_id]:.2f}"
        for rule_id, score in list(said.scores.items())[:_SHOWN_SCORES]
    ]
    lines.append(f"  some rule is violated with probability {said.unsafe:.2f}")
    for each in said.normalised.decodings:
        lines.append(
            f"decoded {' over '.join(each.kinds)} at {each.start}-{each.stop}: {each.seen!r} -> {each.plain!r}"
        )
    if said.normalised.decodings or said.substances:
        lines.append(f"plain text: {said.normalised.text!r}")
    for found_one in said.substances:
        standing = found_one.schedule or "of no schedule"
        lines.append(
            f"substance {found_one.text!r} at {found_one.start}-{found_one.stop}, a {found_one.notation}: {standing}"
        )
    if said.normalised.exhausted:
        lines.append("there is more to decode than is looked through")
    lines += [f"{span.rule_id} {span.start}-{span.stop} {span.text!r}: {span.why}" for span in found.spans]
    lines += [
        f"near exemplar {each.name!r} ({each.rule_id}, {'violates' if each.unsafe else 'allowed'})"
        for each in said.nearest
    ]
    return [*lines, f"encoder {said.encoder}, rule pack {said.rule_pack_hash}"]


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="a rule pack")],
    after: Annotated[str, typer.Argument(help="another")],
    encoder: EncoderOpt = "auto",
) -> None:
    """Show which rules differ and which shipped prompts change their verdict."""
    from safer_ray.rule_review import diff as difference_of

    found = difference_of(before, after, _encoder(encoder))
    for word, ids in (("added", found.added), ("removed", found.removed), ("worded differently", found.reworded)):
        say(f"rules {word}: {', '.join(ids) or 'none'}")
    for change in found.changes:
        line = f"{change.prompt_id}: {change.before} -> {change.after}  {change.prompt}"
        say(line)
    say(f"{len(found.changes)} of {found.prompts} prompts change their verdict")


@app.command()
def coverage(
    data: Annotated[str, typer.Argument(help="shipped:NAME, hf:OWNER/NAME, or a .jsonl, .csv or .parquet file")],
    pack: PackOpt = "default",
    text: Annotated[str | None, typer.Option(help="its text column, if it has no usual name")] = None,
    by: Annotated[str | None, typer.Option(help="a column to count by, e.g. category")] = None,
    encoder: EncoderOpt = "auto",
) -> None:
    """Show which share of the prompts of a file falls under each rule, and under none."""
    from safer_ray.config import PromptSource
    from safer_ray.prompts import COLUMN_NAMES, read_rows
    from safer_ray.rule_review import coverage as covered

    rows = list(read_rows(PromptSource(path=data, columns={"text": text} if text else {})))
    names = (text,) if text else COLUMN_NAMES["text"]
    kept = [(row, column) for row in rows if (column := next((name for name in names if row.get(name)), None))]
    if not kept:
        raise ConfigError(f"{data}: no row has a column {' or '.join(names)}; name one with --text")
    if by and not any(by in row for row, _ in kept):
        raise ConfigError(f"{data}: no row has a column {by!r}; it has {', '.join(kept[0][0])}")
    groups = [str(row.get(by, "")) if by else "all" for row, _ in kept]
    table = covered(_classifier(pack, encoder), [str(row[column]) for row, column in kept], groups)
    _print_table(table, by or data)


def _print_table(table: dict[str, Counter[str]], title: str) -> None:
    """Print counts per group and verdict, the verdicts that occur only, and the share with none."""
    verdicts = sorted({verdict for counts in table.values() for verdict in counts} | {NO_RULE})
    shown = Table(title, *verdicts, "n", "none")
    for group, counts in sorted(table.items()):
        cells = [str(counts[verdict] or "") for verdict in verdicts]
        shown.add_row(group, *cells, str(counts.total()), f"{counts[NO_RULE] / counts.total():.0%}")
    out.print(shown, soft_wrap=True)


def _classifier(pack: str, encoder: str) -> Classifier:
    from safer_ray.backends.classifier import ClassifierSpec

    return ClassifierSpec(pack=pack, encoder=_encoder(encoder)).build()


def _encoder(name: str) -> EncoderName:
    if name not in _ENCODERS:
        raise RulePackError(f"--encoder {name}: unknown; known are {', '.join(_ENCODERS)}")
    return cast("EncoderName", name)
