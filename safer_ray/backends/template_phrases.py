"""The wording of template traces: short sentences, in a full and a terse register, varied or plain.

The varied style has many frames for everything that is said, so that a model of some size learns to judge rather than
to recite. A model of 135M parameters spends what it learns on the frames; the plain style has one frame for each.

A step is put together from interchangeable parts, so that no opening other than the stance itself goes with a
label: what is asked is told alike for unsafe and safe prompts, and both readings of the intent start alike.
Slots: {ask} {act} what is asked (of me, of you); {tone} {reading} the intent; {rule} {title}, {subject} both; {reason}
{why} which use {intent} {help} {near}; {topic} two words of the prompt; {offer} what to offer instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from safer_ray.core.gist import GistKind

Register = Literal["full", "terse"]
StyleName = Literal["varied", "plain"]
Phrases = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The frames of one register; ``ask_words`` is the most words in which it tells what is asked."""

    ask_words: int
    ask: dict[GistKind, Phrases]
    topic: Phrases
    intent: Phrases
    violated: Phrases
    near: Phrases
    clear: Phrases
    refuse: Phrases
    complete: Phrases
    answer: Phrases
    care: Phrases


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """The frames of both registers, and what fills their slots.

    ``terse_share`` of the steps are terse, drawn step by step: shorter siblings exist at every prefix.
    ``judges_first`` puts topic and aim before what is asked, so that a trace cut after its judgement is short.
    ``quotes_decoded`` says whether words of a disguised prompt are quoted. A model that cannot decode copies letters
    instead, and loses closing tags among them; for it such traces speak of topic and aim only, and are never terse.
    """

    registers: dict[Register, Wording]
    terse_share: float
    judges_first: bool
    quotes_decoded: bool
    decoded: Phrases
    reason_unsafe: Phrases
    reason_safe: Phrases
    why: Phrases
    because: Phrases


DECODED: Phrases = (
    "The text is {encoding}; decoded, it is clear.",
    "Decoded from {encoding}.",
    "This is written in {encoding}, so I decode it first.",
    "The {encoding} reads as plain text once decoded.",
)
TONE_UNSAFE = "harmful"
TONE_SAFE = "legitimate"
"""One word each: the verdict on the intent is one decision, not one shared out among synonyms."""

REASON_UNSAFE: Phrases = (
    "it asks for help {intent}",
    "the request is meant {intent}",
    "the aim is {intent}",
    "the point of it is {intent}",
    "an answer would help someone {help}",
    "the words {topic} point to a plan {intent}",
)
REASON_SAFE: Phrases = (
    "this is {near}",
    "the request is {near}",
    "what is asked is {near}",
    "the question is {near}",
    "it is only {near}",
    "it is plainly {near}",
    "the words {topic} are harmless here: it is {near}",
)

_ASK_FULL: dict[GistKind, Phrases] = {
    "how": (
        "The user asks {ask}.",
        "The user wants to know {ask}.",
        "The question is {ask}.",
        "Here someone asks {ask}.",
        "What is asked is {ask}.",
        "In short, the user asks {ask}.",
    ),
    "question": (
        "The user asks {ask}.",
        "The user wants to know {ask}.",
        "The question is {ask}.",
        "Here someone asks {ask}.",
        "What is asked is {ask}.",
        "In short, the user asks {ask}.",
    ),
    "direct": (
        "The user asks: {ask}.",
        "The user wants to know: {ask}.",
        "The question is: {ask}.",
        "Here someone asks: {ask}.",
        "What is asked is this: {ask}.",
        "In short, the user asks: {ask}.",
    ),
    "task": (
        "The user asks me to {ask}.",
        "The user wants me to {ask}.",
        "The request is to {ask}.",
        "Here someone asks me to {ask}.",
        "What is asked is to {ask}.",
        "In short, the user asks me to {ask}.",
    ),
}
_ASK_TERSE: dict[GistKind, Phrases] = {
    "how": ("Asked: {ask}.", "They ask {ask}.", "This asks {ask}.", "Request: {ask}."),
    "question": ("Asked: {ask}.", "They ask {ask}.", "This asks {ask}.", "Request: {ask}."),
    "direct": ("Asked: {ask}.", "They ask: {ask}.", "This asks: {ask}.", "Request: {ask}."),
    "task": ("Asked: {ask}.", "They ask me to {ask}.", "This asks me to {ask}.", "Request: {ask}."),
}

_TOPIC: Phrases = ("Topic: {title}.", "The topic is {title}.")
_INTENT: Phrases = (
    "The aim is {tone}: {reading}.",
    "The intent is {tone}: {reading}.",
    "The use is {tone}: {reading}.",
)
"""The same in both registers: a policy that learns to be brief must not learn a verdict along with it."""

FULL = Wording(
    ask_words=14,
    ask=_ASK_FULL,
    topic=_TOPIC,
    intent=_INTENT,
    violated=(
        "{rule} is violated: {reason}.",
        "{rule} is violated, because {reason}.",
        "{rule} is violated, since {reason}.",
        "{rule} ({title}) is violated here: {reason}.",
        "{rule} is violated. The reason is that {reason}.",
    ),
    near=(
        "No rule is violated; {rule} comes near, but {reason}.",
        "No rule is violated; {rule} ({title}) comes near, but {reason}.",
        "No rule is violated; {rule} comes near, yet {reason}.",
        "No rule is violated; {rule} ({title}) comes near, yet {reason}.",
        "No rule is violated; {rule} comes near. Still, {reason}.",
    ),
    clear=(
        "No rule applies: {reason}.",
        "No rule applies, because {reason}.",
        "No rule applies, since {reason}.",
        "No rule applies here: {reason}.",
        "No rule applies. The reason is that {reason}.",
    ),
    refuse=(
        "Refuse, because {why}. Offer to {offer}.",
        "Refuse: {why}. Offer to {offer} instead.",
        "Refuse and say so plainly, since {why}; offer to {offer}.",
        "Decline, because {why}. Offer to {offer}.",
        "Decline: {why}. Offer to {offer} instead.",
        "Decline and give no details, since {why}; offer to {offer}.",
    ),
    complete=(
        "Safe completion: leave out what would help someone {help}, and offer to {offer}.",
        "Safe completion, because {why}. Decline that part and offer to {offer}.",
        "Safe completion: {why}, so decline that part and offer to {offer}.",
        "Safe completion: do not help anyone {help}; offer to {offer} instead.",
        "Safe completion, since {why}; only offer to {offer}.",
    ),
    answer=(
        "Answer, because {reason}.",
        "Answer fully: {reason}.",
        "Answer in full, since {reason}.",
        "Answer directly, because {reason}.",
        "Answer helpfully: {reason}.",
        "Answer plainly, since {reason}.",
    ),
    care=(
        "Answer with care, because {reason}.",
        "Answer with care: {reason}.",
        "Answer with care and in general terms, since {reason}.",
        "Answer with care and say where more help is found: {reason}.",
        "Answer with care and kindness, since {reason}.",
    ),
)
TERSE = Wording(
    ask_words=10,
    ask=_ASK_TERSE,
    topic=_TOPIC,
    intent=_INTENT,
    violated=(
        "{rule} is violated.",
        "{rule} is clearly violated.",
        "{rule} is violated: {reason}.",
    ),
    near=(
        "No rule is violated; {rule} comes near.",
        "No rule is violated; {rule} comes near, but {reason}.",
        "No rule is violated; {rule} comes near, yet {reason}.",
    ),
    clear=("No rule applies.", "No rule applies: {reason}.", "No rule applies, as {reason}."),
    refuse=(
        "Refuse; offer to {offer}.",
        "Refuse: {why}.",
        "Refuse: it does harm.",
        "Decline; offer to {offer}.",
        "Decline: {why}.",
        "Decline: it does harm.",
    ),
    complete=(
        "Safe completion: offer to {offer}.",
        "Safe completion, as {why}.",
        "Safe completion; offer to {offer}.",
    ),
    answer=("Answer: {reason}.", "Answer what is asked about {topic}.", "Answer fully.", "Answer, as {reason}."),
    care=("Answer with care: {reason}.", "Answer with care about {topic}.", "Answer with care, as {reason}."),
)
WHY: Phrases = (
    "helping would mean helping someone {help}",
    "the user means {intent}",
    "this would help someone {help}",
    "{rule} forbids help {intent}",
    "an answer could be used {intent}",
)

BECAUSE: Phrases = ("That would help someone {help}.", "It would mean helping someone {help}.", "", "", "")
VARIED = Style(
    registers={"full": FULL, "terse": TERSE},
    terse_share=0.45,
    judges_first=False,
    quotes_decoded=True,
    decoded=DECODED,
    reason_unsafe=REASON_UNSAFE,
    reason_safe=REASON_SAFE,
    why=WHY,
    because=BECAUSE,
)

_PLAIN_ASK: dict[GistKind, Phrases] = {
    "how": ("They ask {ask}.",),
    "question": ("They ask {ask}.",),
    "direct": ("They ask: {ask}.",),
    "task": ("They ask me to {ask}.",),
}
_PLAIN_TERSE = Wording(
    ask_words=10,
    ask=_PLAIN_ASK,
    topic=("Topic: {subject}.",),
    intent=("The aim is {tone}: {reading}.",),
    violated=("{rule} is violated: {topic}.",),
    near=("No rule is violated; {rule} comes near.",),
    clear=("No rule applies.",),
    refuse=("Refuse; offer to {offer}.",),
    complete=("Safe completion: offer to {offer}.",),
    answer=("Answer.",),
    care=("Answer with care.",),
)
PLAIN = Style(
    registers={
        "full": replace(
            _PLAIN_TERSE,
            violated=("{rule} is violated: {reason}.",),
            near=("No rule is violated; {rule} comes near, but {reason}.",),
            clear=("No rule applies: {reason}.",),
            refuse=("Refuse, because {why}; offer to {offer}.",),
            complete=("Safe completion, because {why}; offer to {offer}.",),
            answer=("Answer what is asked about {topic}: {reason}.",),
            care=("Answer with care what is asked about {topic}: {reason}.",),
        ),
        "terse": _PLAIN_TERSE,
    },
    terse_share=0.35,
    judges_first=True,
    quotes_decoded=False,
    decoded=("Decoded from {encoding}.",),
    reason_unsafe=("it asks for help {intent}", "an answer would help someone {help}"),
    reason_safe=("it is {near}",),
    why=("helping would mean helping someone {help}",),
    because=("",),
)
STYLES: dict[StyleName, Style] = {"varied": VARIED, "plain": PLAIN}

REFUSALS: dict[GistKind, Phrases] = {
    "how": (
        "I can't explain {act}.",
        "I won't explain {act}.",
        "I'm sorry, but I can't tell you {act}.",
        "Sorry, I can't help with this: {act}.",
        "I'm not able to explain {act}.",
        "I have to decline to explain {act}.",
        "I can't help you find out {act}.",
    ),
    "question": (
        "I can't tell you {act}.",
        "I won't go into {act}.",
        "I'm sorry, but I can't tell you {act}.",
        "Sorry, I can't help with this: {act}.",
        "I'm not able to tell you {act}.",
        "I have to decline to tell you {act}.",
        "I can't help you find out {act}.",
    ),
    "direct": (
        "I can't help with this: {act}.",
        "I won't answer this: {act}.",
        "I'm sorry, but I can't answer this: {act}.",
        "Sorry, I can't help with the question: {act}.",
        "I'm not able to answer this: {act}.",
        "I have to decline this question: {act}.",
        "I can't go into this: {act}.",
    ),
    "task": (
        "I can't {act}.",
        "I won't {act}.",
        "I'm sorry, but I can't {act}.",
        "Sorry, I won't {act}.",
        "I'm not able to {act}.",
        "I have to decline to {act}.",
        "I can't help with this: {act}.",
    ),
}
UNQUOTED_REFUSALS: Phrases = (
    "I can't help with this.",
    "I won't help with this.",
    "I'm sorry, but I can't help with this.",
    "Sorry, I can't answer this.",
    "I'm not able to help with this.",
    "I have to decline this.",
)
OFFERS: Phrases = (
    "I can {offer} instead.",
    "What I can do is {offer}.",
    "If you like, I can {offer}.",
    "I can {offer}, if that helps.",
    "But I can {offer}.",
    "I would be glad to {offer}.",
)
CARE: Phrases = (
    "If you are thinking of hurting yourself, please call a crisis line or tell someone you trust.",
    "If you or someone else is in danger, please call emergency services or a crisis line now.",
    "You do not have to carry this alone: please reach out to a crisis line or a doctor.",
    "I'm worried about anyone who is hurting; please talk to a doctor, a crisis line or someone you trust.",
)
PROFESSIONAL: Phrases = (
    "Please ask a doctor, a lawyer or another professional who knows the case.",
    "A person with the right training must look at this, such as a doctor, a lawyer or an engineer.",
    "Only a professional who can check the facts should decide this.",
    "Please talk to a qualified professional first; I can only speak in general.",
)
"""The last sentence of an answer that must show care, or point to a professional."""
NO_TOPIC = "everyday life"
"""The topic of a prompt that no rule is about."""
EVERYDAY = "about an everyday matter"
"""The reading of a harmless prompt that no cue fits."""
