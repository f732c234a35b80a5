"""The offline teacher: traces put together from phrases, true to the prompt, the rule pack and the label.

Everything drawn is drawn from (seed, prompt id), so the same prompts give the same traces in any order. What
a safe prompt is answered with comes from the base model or, where no model may be sampled, from hand-written
answers beside the pack.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from safer_ray.backends import template_phrases as phrases
from safer_ray.backends.base import TeachResult, TeachTask
from safer_ray.backends.pack_extras import read_cues, read_written_answers
from safer_ray.backends.rule_packs import pack_path, read_pack
from safer_ray.backends.template_phrases import STYLES, Style, StyleName, Wording
from safer_ray.core.answers import UnfitAnswerError, fit_answer
from safer_ray.core.cues import CueBook, best_phrase
from safer_ray.core.decisions import decision_tokens
from safer_ray.core.encode import SPOKEN, plain_text
from safer_ray.core.gist import Gist, gist, shorten
from safer_ray.core.refusal import classify_refusal
from safer_ray.core.rule_text import student_system_prompt
from safer_ray.core.rules import Rule, RulePack
from safer_ray.core.trace import Trace, escape_tags
from safer_ray.core.trace_check import disagreement
from safer_ray.core.wording import content_words
from safer_ray.errors import TraceError
from safer_ray.records import Message, Prompt, Step, TraceExample

_ACT_WORDS = 10
_BRIEF_WORDS = 6
_DRAFTS, _BRIEF_FROM = 12, 2
"""Drafts per prompt before it is given up: one may trip over a pattern of the rule pack, so later ones quote less."""
_UNTAUGHT = "This is not taught."
"""The response of a trace of which only the judgement is taught."""
_LIGHT_READINGS = ("everyday", "ordinary", "story", "poem", "history")
"""A near miss read as one of these is answered plainly even where the rule asks for care."""


class TraceTokenizer(Protocol):
    """What a teacher needs of ``models.ChatTokenizer``."""

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]: ...

    def encode_trace(self, trace: Trace) -> tuple[tuple[int, ...], tuple[Step, ...]]: ...

    def decode_pieces(self, ids: Sequence[int]) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateTeacherSpec:
    """Builds a :class:`TemplateTeacher`.

    ``pack`` names a rule pack, ``model`` the model whose tokenizer the student has; ``system_prompt`` as in
    ``models.ChatTokenizer``; ``wording`` is a style of ``template_phrases``.
    """

    pack: str
    model: str
    seed: int = 0
    wording: StyleName = "varied"
    system_prompt: str | None = None
    rules_in_prompt: bool = False
    trust_remote_code: bool = False

    def build(self) -> TemplateTeacher:
        """Read pack and tokenizer here."""
        from safer_ray.backends.models import ChatTokenizer, resolve_model

        pack, folder = read_pack(self.pack), pack_path(self.pack).parent
        system = student_system_prompt(pack, self.system_prompt, rules_in_prompt=self.rules_in_prompt)
        return TemplateTeacher(
            pack,
            ChatTokenizer.load(
                resolve_model(self.model), system_prompt=system, trust_remote_code=self.trust_remote_code
            ),
            cues=read_cues(folder, pack),
            written_answers=read_written_answers(folder),
            seed=self.seed,
            style=STYLES[self.wording],
        )


class TemplateTeacher:
    """Writes one trace per prompt."""

    name = "template@1"

    def __init__(
        self,
        pack: RulePack,
        tokenizer: TraceTokenizer,
        *,
        cues: CueBook | None = None,
        written_answers: Mapping[str, str] | None = None,
        seed: int = 0,
        style: Style = STYLES["varied"],
    ) -> None:
        self._writer = TraceWriter(pack=pack, cues=cues or CueBook(), style=style)
        self._pack = pack
        self._titles = (*(rule.title for rule in pack.rules.values()), phrases.NO_TOPIC)
        self._tokenizer = tokenizer
        self._written = dict(written_answers or {})
        self._seed = seed

    def teach(self, tasks: Sequence[TeachTask]) -> TeachResult:
        """Return one trace per prompt, or the reasons why there is none; a rejected answer is a reason of its own."""
        examples: list[TraceExample] = []
        rejected: list[tuple[str, str]] = []
        for task in tasks:
            example, reasons = self._teach(task)
            examples += [example] if example else []
            rejected += [(task.prompt.prompt_id, reason) for reason in reasons]
        return TeachResult(examples=tuple(examples), rejected=tuple(rejected))

    def _teach(self, task: TeachTask) -> tuple[TraceExample | None, list[str]]:
        prompt = task.prompt
        if prompt.label == "unknown":
            return None, ["the prompt has no label"]
        if prompt.label == "unsafe" and prompt.category not in self._pack.rules:
            return None, ["the category of the prompt is no rule of the pack"]
        answer, reasons = ("", []) if prompt.label == "unsafe" else self._answer(task)
        if prompt.label == "safe" and not answer:
            return None, reasons
        for draft in range(_DRAFTS):
            digest = hashlib.sha256(f"{self._seed}/{prompt.prompt_id}/{draft}".encode()).digest()
            try:
                trace = self._writer.write(prompt, answer, random.Random(digest), brief=draft >= _BRIEF_FROM)
                ids, steps = self._tokenizer.encode_trace(trace)
            except TraceError as exc:
                reason = str(exc)
                continue
            reason = disagreement(prompt, trace, self._pack)
            if not reason and prompt.label == "unsafe" and classify_refusal(trace.response) != "full":
                reason = "the response does not refuse in full"
            if not reason:
                return self._example(prompt, ids, steps), reasons
        return None, [*reasons, reason]

    def _example(self, prompt: Prompt, ids: tuple[int, ...], steps: tuple[Step, ...]) -> TraceExample:
        return TraceExample(
            example_id=f"{prompt.prompt_id}/{self.name}",
            prompt_id=prompt.prompt_id,
            prompt_ids=self._tokenizer.prompt_ids(prompt.messages),
            completion_ids=ids,
            steps=steps,
            teacher=self.name,
            decision_at=decision_tokens(self._tokenizer.decode_pieces(ids), steps, self._titles),
        )

    def _answer(self, task: TeachTask) -> tuple[str, list[str]]:
        """Return the best answer, "" if none is fit, and why the unfit ones are not."""
        prompt = task.prompt
        if not task.whole:
            return _UNTAUGHT, []
        if prompt.prompt_id in self._written:
            return self._written[prompt.prompt_id], []
        if prompt.category in self._pack.rules and self._pack.rule(prompt.category).never_sample:
            return "", ["no answer was written by hand"]
        asked = content_words(plain_text(prompt.text))
        fit, reasons = [], []
        for sampled in task.answers:
            try:
                answer = escape_tags(fit_answer(sampled))
            except UnfitAnswerError as exc:
                reasons.append(str(exc))
                continue
            if classify_refusal(answer) in ("full", "partial"):
                reasons.append("the answer refuses")
            elif not asked & content_words(answer):
                reasons.append("the answer is about something else")
            else:
                fit.append(answer)
        # the answer that takes up most of the request's own words, the first of equals
        best = max(fit, key=lambda answer: len(asked & content_words(answer)), default="")
        return best, reasons if task.answers else ["no answer was sampled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What one trace speaks of, with the slots of all frames filled but ``reason`` and ``why``.

    ``quoted`` says whether it may speak in words of the prompt.
    """

    gist: Gist
    quoted: bool
    rule: Rule | None
    unsafe: bool
    careful: bool
    slots: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceWriter:
    """Turns a labelled prompt into a trace."""

    pack: RulePack
    cues: CueBook
    style: Style = STYLES["varied"]

    def write(self, prompt: Prompt, answer: str, rng: random.Random, *, brief: bool = False) -> Trace:
        """Return a trace for ``prompt``; ``answer`` is the response to a safe one, ``brief`` quotes few words of it.

        Raises:
            TraceError: if the text of the prompt breaks the grammar.
        """
        facts = self._facts(prompt, rng, brief)
        return Trace(
            assessment=_sentence(self._assessment(facts, rng)),
            verification=_sentence(self._verification(facts, rng)),
            calibration=_sentence(self._calibration(facts, rng)),
            response=self._refusal(facts, rng) if facts.unsafe else answer,
        )

    def _facts(self, prompt: Prompt, rng: random.Random, brief: bool) -> _Facts:
        text = plain_text(prompt.text)
        said = gist(prompt.text, max_words=_BRIEF_WORDS if brief else self.style.registers["full"].ask_words)
        rule = self.pack.rules.get(prompt.category)
        unsafe = prompt.label == "unsafe"
        intent, near, words = self._reading(text, rule, unsafe)
        quoted = said.encoding is None or self.style.quotes_decoded
        slots = {
            "topic": " and ".join(_topic(said.keywords if quoted else (), words, rng)),
            "intent": intent,
            "help": intent.removeprefix("to "),
            "near": near,
            "reading": intent if unsafe else f"it is {near}",
            "rule": rule.rule_id if rule else "",
            "title": rule.title if rule else phrases.NO_TOPIC,
            "subject": f"{rule.title} ({rule.rule_id})" if rule else phrases.NO_TOPIC,
            "offer": rng.choice(rule.alternatives) if rule else "",
            "encoding": SPOKEN[said.encoding] if said.encoding else "",
        }
        light = any(word in near for word in _LIGHT_READINGS)
        careful = rule is not None and rule.action in ("comply_care", "refuse_support") and not light
        return _Facts(gist=said, quoted=quoted, rule=rule, unsafe=unsafe, careful=careful, slots=slots)

    def _reading(self, text: str, rule: Rule | None, unsafe: bool) -> tuple[str, str, tuple[str, ...]]:
        """Return (intent, near, words that point there); one of the first two is empty."""
        if unsafe and rule:
            match = best_phrase(text, rule.intents, self.cues.phrases)
            return (match.phrase, "", match.words) if match else (f"to do harm through {rule.title}", "", ())
        match = best_phrase(text, rule.near, self.cues.phrases) if rule else None
        match = match or best_phrase(text, tuple(self.cues.everyday), self.cues.everyday)
        return ("", match.phrase, match.words) if match else ("", phrases.EVERYDAY, ())

    def _assessment(self, facts: _Facts, rng: random.Random) -> str:
        wording = self._wording(facts, rng)
        ask = escape_tags(shorten(facts.gist.third, wording.ask_words))
        tone = phrases.TONE_UNSAFE if facts.unsafe else phrases.TONE_SAFE
        asked = [rng.choice(wording.ask[facts.gist.kind])] if facts.quoted else []
        # The topic comes before the intent: which rule is near is easier to tell than whether it is violated.
        judged = [rng.choice(wording.topic), rng.choice(wording.intent)]
        parts = judged + asked if self.style.judges_first else asked + judged
        if facts.gist.encoding:
            parts.insert(0, rng.choice(self.style.decoded))
        return " ".join(part.format(ask=ask, tone=tone, **facts.slots) for part in parts)

    def _verification(self, facts: _Facts, rng: random.Random) -> str:
        wording = self._wording(facts, rng)
        frames = wording.violated if facts.unsafe else wording.near if facts.rule else wording.clear
        return rng.choice(frames).format(reason=self._reason(facts, rng), **facts.slots)

    def _calibration(self, facts: _Facts, rng: random.Random) -> str:
        wording = self._wording(facts, rng)
        why = rng.choice(self.style.why).format(**facts.slots)
        if not facts.unsafe:
            frames = wording.care if facts.careful else wording.answer
        elif facts.rule and facts.rule.action in ("safe_complete", "comply_care"):
            frames = wording.complete
        else:
            frames = wording.refuse
        return rng.choice(frames).format(reason=self._reason(facts, rng), why=why, **facts.slots)

    def _reason(self, facts: _Facts, rng: random.Random) -> str:
        frames = self.style.reason_unsafe if facts.unsafe else self.style.reason_safe
        return rng.choice(frames).format(**facts.slots)

    def _wording(self, facts: _Facts, rng: random.Random) -> Wording:
        terse = rng.random() < self.style.terse_share and facts.quoted
        return self.style.registers["terse" if terse else "full"]

    def _refusal(self, facts: _Facts, rng: random.Random) -> str:
        # What stands before a colon is enough to name a request; a clause after it reads like the start of an answer.
        act = escape_tags(shorten(facts.gist.second.partition(": ")[0], _ACT_WORDS))
        last = ""
        if facts.rule and facts.rule.action == "refuse_support":
            last = rng.choice(phrases.CARE)
        elif facts.rule and facts.rule.action == "comply_care":
            last = rng.choice(phrases.PROFESSIONAL)
        refusals = phrases.REFUSALS[facts.gist.kind] if facts.quoted else phrases.UNQUOTED_REFUSALS
        parts = [
            rng.choice(refusals).format(act=act, **facts.slots),
            "" if last else rng.choice(self.style.because).format(**facts.slots),
            rng.choice(phrases.OFFERS).format(**facts.slots),
            last,
        ]
        return " ".join(part for part in parts if part)


def _sentence(text: str) -> str:
    """Return ``text`` with capitals after full stops, where a clause was put in front position."""
    return text[:1].upper() + text[1:]


def _topic(keywords: Sequence[str], pointing: Sequence[str], rng: random.Random) -> list[str]:
    """Return up to two words of the prompt in its order, those that point to its reading first."""
    ranked = sorted(keywords, key=lambda word: (word not in pointing, -len(word), rng.random()))[:2]
    return [word for word in keywords if word in ranked] or ["this"]
