"""What a prompt asks, in one clause: the grammar behind "The user asks how to ...".

Wrapping is taken off (politeness, "tell me", encodings), persons are turned ("my gym" becomes "their gym"),
and every content word stays, so that a trace names the request it is about. English only, by patterns: a
sentence no pattern fits is kept as it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from safer_ray.core.encode import Encoding, find_encoded
from safer_ray.core.wording import content_words, words_of

GistKind = Literal["how", "question", "direct", "task"]
"""Grammar of the clause: "how to X" / an indirect question / a direct question / a bare infinitive."""

_TURN_3RD = {
    "i": "they", "me": "them", "my": "their", "mine": "theirs", "myself": "themselves", "we": "they", "us": "them",
    "our": "their", "ours": "theirs", "ourselves": "themselves", "i'm": "they are", "i've": "they have",
    "i'd": "they would", "i'll": "they will", "we're": "they are", "we've": "they have", "we'll": "they will",
    "you": "I", "your": "my", "yours": "mine", "yourself": "myself", "you're": "I am",
}  # fmt: skip
_TURN_2ND = _TURN_3RD | {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself", "we": "you", "us": "you",
    "our": "your", "ours": "yours", "ourselves": "yourselves", "i'm": "you are", "i've": "you have",
    "i'd": "you would", "i'll": "you will", "we're": "you are", "we've": "you have", "we'll": "you will",
}  # fmt: skip
_AGREE = (
    (re.compile(r"\bI are\b"), "I am"),
    (re.compile(r"\bare I\b"), "am I"),
    (re.compile(r"\b(they|you) am\b"), r"\1 are"),
    (re.compile(r"\bam (they|you)\b"), r"are \1"),
    (re.compile(r"\b(they|you) was\b"), r"\1 were"),
    (re.compile(r"\b(for|to|with|at|give|gives|tell|about) I\b"), r"\1 me"),
)
_POLITE = re.compile(r"^(?:please,?|hi,?|hello,?|hey,?|now,?|so,?|kindly)\s+", re.IGNORECASE)
_PLAY = re.compile(
    r"^(?:(?:let's (?:play|pretend)|in (?:our|this|my) (?:game|roleplay|role-play|story|play),?)\s*:?\s+)?"
    r"(?:pretend (?:you are|to be|that you are)|imagine (?:you are|yourself as)|act as(?: if you (?:are|were))?|"
    r"you are|play the part of|take the part of|speak as|be)\s+(?P<role>.+)$",
    re.IGNORECASE,
)
_PRETEND = re.compile(r"^(?:imagine|pretend) (?:that )?(?P<clause>(?:you|we|i) .+)$", re.IGNORECASE)
_ASK_ME = re.compile(r"^(?:can|could|would|will) you (?:please )?(?P<task>.+)$", re.IGNORECASE)
_WISH = re.compile(r"^(?:i (?:need|want|would like)|i'd like|need) (?P<thing>(?!you to|to )\S.+)$", re.IGNORECASE)
_WISH_TO = re.compile(r"^(?:i (?:need|want|would like)|i'd like) (?P<you>you )?to (?P<task>.+)$", re.IGNORECASE)
_TELL_ME = re.compile(r"^tell me (?P<clause>(?:how|what|where|which|who|why|when|whether)\b.+)$", re.IGNORECASE)
_WH = (
    r"(?P<wh>how|where|when|(?:what|which|how|whose|at (?:what|which)|in (?:what|which))\b(?: [\w',-]+){0,7}?"
    r"|who|why|what|which)"
)
_AUX = r"(?P<aux>do|can|could|would|might|should|may|must|will)"
_BY_PRONOUN = re.compile(
    rf"^{_WH} {_AUX} (?P<who>i|we|you|they|he|she|it|one|someone|somebody|anyone|people) (?P<rest>.+)$", re.IGNORECASE
)
_WH_SUBJECT = re.compile(r"^(?:who|which|what|whose)\b", re.IGNORECASE)
_WH_ANY = re.compile(r"^(?:who|which|what|whose|where|when|why|how|at which|at what|in which|in what)\b", re.IGNORECASE)
_YES_NO_PRONOUN = re.compile(
    r"^(?P<aux>can|could|should|may|might|must|do|will|would) (?P<who>i|we|they|he|she|it|people) (?P<rest>.+)$",
    re.IGNORECASE,
)
_YES_NO_BE = re.compile(r"^(?P<be>is|are|was|were) (?P<who>there|it|this|that|they) (?P<rest>.+)$", re.IGNORECASE)
_AUX_START = re.compile(
    r"^(?:is|are|was|were|do|does|did|can|could|should|would|will|may|might|must|has|have)\b", re.IGNORECASE
)
_CLAUSE_CUT = re.compile(r"(?:[,;:]| (?:so that|because|without|before|after|while|so|when|and|but|then)) ")
_PHRASE_CUT = re.compile(r" (?:who|that|which|for|to|with|on|in|at|from|by|of|into|without) ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gist:
    """One clause that says what is asked.

    ``third`` speaks of the user as "they" and fits a trace, ``second`` as "you" and fits the answer;
    ``keywords`` are the content words of the prompt in order, ``encoding`` what it was disguised in.
    """

    kind: GistKind
    third: str
    second: str
    keywords: tuple[str, ...]
    encoding: Encoding | None = None


def gist(text: str, *, max_words: int = 22) -> Gist:
    """Return what the prompt ``text`` asks, in at most ``max_words`` words; an encoded prompt is decoded first."""
    found = find_encoded(text)
    plain = " ".join((text if found is None else found.plain).split())
    kind, clause = _clause(plain)
    return Gist(
        kind=kind,
        third=shorten(_turn(clause, _TURN_3RD), max_words),
        second=shorten(_turn(clause, _TURN_2ND), max_words),
        keywords=keywords(plain),
        encoding=None if found is None else found.encoding,
    )


def keywords(text: str) -> tuple[str, ...]:
    """Return the content words of ``text``, lower-cased, in order, each once."""
    return tuple(dict.fromkeys(word for word in words_of(text) if content_words(word)))


def shorten(clause: str, max_words: int) -> str:
    """Return ``clause`` in at most ``max_words`` words, cut before a clause or phrase if there is one."""
    words = clause.split()
    if len(words) <= max_words:
        return clause
    head = " ".join(words[: max_words + 1]) + " "
    for boundary in (_CLAUSE_CUT, _PHRASE_CUT):
        cuts = [cut.start() for cut in boundary.finditer(head) if len(head[: cut.start()].split()) > max_words // 2]
        if cuts:
            return head[: cuts[-1]].rstrip(" ,;:")
    kept = words[:max_words]
    while len(kept) > 1 and not content_words(kept[-1]):
        kept.pop()
    return " ".join(kept).rstrip(" ,;:")


def _clause(plain: str) -> tuple[GistKind, str]:
    body = plain.rstrip(" .?!")
    while polite := _POLITE.match(body):
        body = body[polite.end() :]
    asked = plain.rstrip().endswith("?") or bool(_WH_ANY.match(body))
    body = re.sub(r"(?<!\.)[.!?]\s+(\S+)", lambda match: f"; {_lower(match[1])}", body)
    if match := _TELL_ME.match(body):
        clause = _lower(match["clause"])
        return ("how" if clause.startswith("how to ") else "question"), clause
    if match := _ASK_ME.match(body):
        return "task", _lower(match["task"])
    if match := _WISH_TO.match(body):
        return "task", match["task"] if match["you"] else f"help me {match['task']}"
    if match := _WISH.match(body):
        return "task", f"provide {match['thing']}"
    if match := _PLAY.match(body):
        return "task", f"play {_lower(match['role'])}"
    if match := _PRETEND.match(body):
        return "task", f"pretend that {match['clause']}"
    if re.match(r"^let's ", body, re.IGNORECASE):
        return "task", _lower(body[6:])
    return _question(body) if asked else ("task", _lower(body))


def _question(body: str) -> tuple[GistKind, str]:
    if match := re.match(r"^how to (?P<rest>.+)$", body, re.IGNORECASE):
        return "how", f"how to {match['rest']}"
    if match := _BY_PRONOUN.match(body):
        wh, aux, who = _lower(match["wh"]), match["aux"].lower(), match["who"]
        if who.lower() in ("i", "we", "one") and wh in ("how", "where", "when") and aux != "should":
            return ("how" if wh == "how" else "question"), f"{wh} to {match['rest']}"
        return "question", f"{wh} {who}{'' if aux == 'do' else ' ' + aux} {match['rest']}"
    if match := _YES_NO_PRONOUN.match(body):
        aux = match["aux"].lower()
        return "question", f"whether {match['who']}{'' if aux == 'do' else ' ' + aux} {match['rest']}"
    if match := _YES_NO_BE.match(body):
        return "question", f"whether {match['who']} {match['be'].lower()} {match['rest']}"
    words = body.split()
    if _WH_SUBJECT.match(body) and len(words) > 1 and not _AUX_START.match(words[1]):
        return "question", _lower(body)
    return "direct", _lower(body)


def _lower(text: str) -> str:
    """Lower the first letter, unless the first word is I or a name in capitals."""
    head = text.split(" ", 1)[0]
    if head == "I" or head.startswith("I'") or head[1:].upper() == head[1:] != "":
        return text
    return text[:1].lower() + text[1:]


def _turn(clause: str, persons: dict[str, str]) -> str:
    turned = re.sub(r"[A-Za-z][A-Za-z']*", lambda match: persons.get(match[0].lower(), match[0]), clause)
    for pattern, agreed in _AGREE:
        turned = pattern.sub(agreed, turned)
    return turned
