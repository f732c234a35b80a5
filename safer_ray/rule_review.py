"""What a person asks of a rule pack: is it sound, why did it say that, what changes, what does it cover."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from safer_ray.backends.classifier import Classification, Classifier, ClassifierSpec
from safer_ray.backends.encoders import EncoderName
from safer_ray.backends.pack_extras import read_cues, read_examples
from safer_ray.backends.rule_packs import pack_path, read_pack
from safer_ray.core.cues import pointing_words
from safer_ray.core.exemplar_head import area_under_curve
from safer_ray.core.rules import RulePack, check_text
from safer_ray.records import NO_RULE

_FEW_EXAMPLES = 5
_SHOWN_WORDS = 5


def lint(pack_name: str) -> list[str]:
    """Return one sentence per thing in a pack that loads and is not as good as it could be.

    Raises:
        RulePackError: if it does not load.
    """
    pack, folder = read_pack(pack_name), pack_path(pack_name).parent
    cues = read_cues(folder, pack)
    faults = [*_phrase_faults(pack)]
    for rule in pack.rules.values():
        bare = [phrase for phrase in (*rule.intents, *rule.near) if cues.phrases and phrase not in cues.phrases]
        faults += [
            f"{rule.rule_id}: {phrase!r} has no cues in cues.yaml; add words that point to it" for phrase in bare
        ]
    examples = read_examples(folder)
    counts = Counter((row["category"], row["label"]) for row in examples)
    for rule_id in pack.rules if examples else ():
        for label in ("unsafe", "safe"):
            if counts[rule_id, label] < _FEW_EXAMPLES:
                faults.append(f"{rule_id}: {counts[rule_id, label]} {label} training prompts; write {_FEW_EXAMPLES}")
    for row in examples:
        if row["label"] == "safe":
            hits = check_text(pack, row["plain"], "response")
            faults += [f"{hit.rule_id}: check {hit.check_id} fires on the safe prompt {row['id']}" for hit in hits]
    return faults


def _phrase_faults(pack: RulePack) -> Iterable[str]:
    first: dict[str, str] = {}
    for rule in pack.rules.values():
        for phrases, start in ((rule.intents, "to "), (rule.near, "about ")):
            for phrase in phrases:
                if not phrase.startswith(start):
                    yield f"{rule.rule_id}: {phrase!r} does not start with {start.strip()!r}, so no frame fits it"
                if phrase in first:
                    yield f"{rule.rule_id}: {phrase!r} stands in {first[phrase]} too; a judge cannot tell them apart"
                first.setdefault(phrase, rule.rule_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """How a classifier does on labelled prompts.

    ``top1``, ``top3``: violating prompts whose rule scores highest, or among the three highest. ``area``: under the
    ROC curve, unsafe against safe. ``confusion``: (rule, or R00 for a safe prompt; verdict) -> prompts.
    """

    unsafe: int
    safe: int
    top1: int
    top3: int
    area: float
    confusion: Counter[tuple[str, str]]


def marks(classifier: Classifier, rows: Sequence[dict[str, str]]) -> Marks:
    """Return how ``classifier`` does on labelled rows."""
    found = classifier.classify([row["prompt"] for row in rows])
    unsafe = [(row["category"], each) for row, each in zip(rows, found, strict=True) if row["label"] == "unsafe"]
    wanted = [row["category"] if row["label"] == "unsafe" else NO_RULE for row in rows]
    return Marks(
        unsafe=len(unsafe),
        safe=len(rows) - len(unsafe),
        top1=sum(next(iter(each.scores)) == category for category, each in unsafe),
        top3=sum(category in list(each.scores)[:3] for category, each in unsafe),
        area=area_under_curve([each.unsafe for each in found], [row["label"] == "unsafe" for row in rows]),
        confusion=Counter(zip(wanted, (each.rule_id for each in found), strict=True)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of the plain text and what it counts for: ``why`` names a check, a phrase, or the score it carries."""

    rule_id: str
    start: int
    stop: int
    text: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A classification, the threshold of each rule, and the spans that led to it."""

    classification: Classification
    thresholds: dict[str, float]
    spans: tuple[Span, ...]


def explain(pack_name: str, text: str, encoder: EncoderName = "auto") -> Explanation:
    """Return what the pack says of ``text`` and why.

    Spans come from machine checks that fired, from cues of the likeliest rule, and from leaving out one word at a
    time: the words without which its score falls most.
    """
    pack, folder = read_pack(pack_name), pack_path(pack_name).parent
    classifier = ClassifierSpec(pack=pack_name, encoder=encoder).build()
    [found] = classifier.classify([text])
    plain, likeliest = found.normalised.text, next(iter(found.scores))
    spans = []
    for hit in found.hits:
        start = plain.find(hit.excerpt)
        why = f"check {hit.check_id}"
        spans.append(Span(rule_id=hit.rule_id, start=start, stop=start + len(hit.excerpt), text=hit.excerpt, why=why))
    rule, cues = pack.rule(likeliest), read_cues(folder, pack)
    for phrase in (*rule.intents, *rule.near):
        for start, stop in pointing_words(plain, phrase, cues.phrases.get(phrase, ())):
            spans.append(
                Span(rule_id=likeliest, start=start, stop=stop, text=plain[start:stop], why=f"points {phrase}")
            )
    spans += _carrying(classifier, found, likeliest)
    return Explanation(classification=found, thresholds=classifier.thresholds, spans=tuple(spans))


def _carrying(classifier: Classifier, found: Classification, rule_id: str) -> list[Span]:
    plain = found.normalised.text
    words = []
    start = 0
    for word in plain.split():
        start = plain.index(word, start)
        words.append((start, start + len(word)))
        start += len(word)
    without = classifier.classify([plain[:start] + plain[stop:] for start, stop in words])
    falls = [found.scores[rule_id] - each.scores[rule_id] for each in without]
    order = sorted(range(len(words)), key=lambda at: -falls[at])[:_SHOWN_WORDS]
    return [
        Span(
            rule_id=rule_id,
            start=words[at][0],
            stop=words[at][1],
            text=plain[slice(*words[at])],
            why=f"carries {falls[at]:.2f} of the score",
        )
        for at in order
        if falls[at] > 0.005
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A shipped prompt that two packs judge differently."""

    prompt_id: str
    prompt: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What changes from one pack to another: rules added, removed and worded differently, and verdicts on prompts."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    reworded: tuple[str, ...]
    prompts: int
    changes: tuple[Change, ...]


def diff(before: str, after: str, encoder: EncoderName = "auto") -> Difference:
    """Compare two packs by their rules and by their verdicts on all the prompts that lie beside either."""
    packs = read_pack(before), read_pack(after)
    rows = {
        row["id"]: row["prompt"]
        for name in (before, after)
        for split in ("train", "test")
        for row in read_examples(pack_path(name).parent, split)
    }
    old, new = (
        ClassifierSpec(pack=name, encoder=encoder).build().classify(list(rows.values())) for name in (before, after)
    )
    ids = [tuple(pack.rules) for pack in packs]
    shared = [rule_id for rule_id in ids[0] if rule_id in ids[1]]
    return Difference(
        added=tuple(rule_id for rule_id in ids[1] if rule_id not in ids[0]),
        removed=tuple(rule_id for rule_id in ids[0] if rule_id not in ids[1]),
        reworded=tuple(rule_id for rule_id in shared if packs[0].rule(rule_id) != packs[1].rule(rule_id)),
        prompts=len(rows),
        changes=tuple(
            Change(prompt_id=prompt_id, prompt=prompt, before=was.rule_id, after=now.rule_id)
            for (prompt_id, prompt), was, now in zip(rows.items(), old, new, strict=True)
            if was.rule_id != now.rule_id
        ),
    )


def coverage(classifier: Classifier, texts: Sequence[str], groups: Sequence[str]) -> dict[str, Counter[str]]:
    """Return, for each group of texts, how many fall under each rule, R00 for none."""
    table: dict[str, Counter[str]] = {}
    for group, each in zip(groups, classifier.classify(texts), strict=True):
        table.setdefault(group, Counter())[each.rule_id] += 1
    return table
