"""Text written so that a filter does not see it: five reversible disguises, and how to see through them.

Encoded requests are part of the seed prompts because a rule that holds only for plain spelling does not
hold. The teacher uses the same code backwards to say what an encoded prompt really asks.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from safer_ray.core.normalise import normalise

Encoding = Literal["leet", "rot13", "base64", "reversed", "spaced"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
SPOKEN: dict[Encoding, str] = {
    "leet": "leetspeak",
    "rot13": "ROT13",
    "base64": "base64",
    "reversed": "reversed letters",
    "spaced": "spaced letters",
}
"""How each encoding is called in a sentence."""

_LEET = str.maketrans("aeiost", "431057")
_UNLEET = str.maketrans("431057", "aeiost")

_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        "about add after all an and any are as ask at be before best book build but buy by can child "
        "children code could day do does draft explain find fix for from get give guide has have help home "
        "how i if in into is it join keep kids like list make me message my name need new news not note of "
        "off on one or our out people phone plan post road say school script sell send should show so some "
        "song speech story tell text that the their them they this to town turn up us use want was way we "
        "what when where which who why will with without work would write you your ",
    )
)
"""Frequent words of short requests; a text is taken to be decoded when it is full of them."""
_ROT13_WORDS = frozenset(codecs.encode(word, "rot13") for word in _WORDS)
_REVERSED_WORDS = frozenset(word[::-1] for word in _WORDS)
_LEET_DIGITS = frozenset("431057")
_MIN_GAIN = 0.1
_MIN_PAYLOAD_CHARS = 12
_PAYLOAD_BREAK = re.compile(r"[:\n\"“”()]+\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """An encoded stretch found in a text, and what it says."""

    encoding: Encoding
    plain: str


def _base64_decode(text: str) -> str:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True).decode("utf-8")
    except (binascii.Error, ValueError) as exc:
        raise ValueError(f"not base64 of UTF-8 text: {exc}") from exc


def _leet_encode(text: str) -> str:
    if any(digit in text for digit in "431057"):
        raise ValueError("leet cannot be undone in a text that already holds one of the digits 0 1 3 4 5 7")
    return text.translate(_LEET)


def _rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


_ENCODE: dict[Encoding, Callable[[str], str]] = {
    "leet": _leet_encode,
    "rot13": _rot13,
    "base64": lambda text: base64.b64encode(text.encode("utf-8")).decode("ascii"),
    "reversed": lambda text: text[::-1],
    "spaced": lambda text: " ".join("-".join(word) for word in text.split(" ")),
}
_DECODE: dict[Encoding, Callable[[str], str]] = {
    "leet": lambda text: text.translate(_UNLEET),
    "rot13": _rot13,
    "base64": _base64_decode,
    "reversed": lambda text: text[::-1],
    "spaced": lambda text: " ".join(word[::2] for word in text.split(" ")),
}


def encode(encoding: Encoding, text: str) -> str:
    """Disguise ``text``; ``decode`` undoes it.

    Raises:
        ValueError: for leet, if the text holds a digit that decoding would turn into a letter.
    """
    return _ENCODE[encoding](text)


def decode(encoding: Encoding, text: str) -> str:
    """Undo ``encode``.

    Raises:
        ValueError: for base64, if the text is not base64 of UTF-8.
    """
    return _DECODE[encoding](text)


@lru_cache(maxsize=64)  # few: one prompt is read several times in a row
def find_encoded(text: str) -> Decoded | None:
    """Return the encoded stretch of a prompt, decoded, or None where nothing looks encoded.

    The stretch is looked for in the whole text and after each colon, quote, bracket or line break.
    The reading kept is the one that turns most of its words into frequent English words.
    """
    best, best_gain = None, _MIN_GAIN
    for payload in dict.fromkeys(_payloads(text)):
        before = _familiarity(payload)
        for encoding in _possible(payload):
            try:
                plain = decode(encoding, payload)
            except ValueError:
                continue
            after = _familiarity(plain)
            if after - before > best_gain and _encodes_to(encoding, plain, payload):
                best, best_gain = Decoded(encoding=encoding, plain=plain), after - before
    return best


def _possible(payload: str) -> Iterator[Encoding]:
    """Yield the encodings that could turn ``payload`` into other text with frequent words in it.

    Every prompt is read for every encoding: what cannot be one is seen here without decoding it.
    """
    words = _bare_words(payload)
    foreign = not payload.isascii()
    if not _LEET_DIGITS.isdisjoint(payload):
        yield "leet"
    if foreign or any(word in _ROT13_WORDS for word in words):
        yield "rot13"
    if len(payload.split(None, 1)) == 1:
        yield "base64"
    if foreign or any(word in _REVERSED_WORDS for word in words):
        yield "reversed"
    if "-" in payload:
        yield "spaced"


def _encodes_to(encoding: Encoding, plain: str, payload: str) -> bool:
    """Return whether ``payload`` is exactly ``plain`` in that encoding."""
    try:
        return encode(encoding, plain) == payload
    except ValueError:
        return False


@lru_cache(maxsize=64)
def plain_text(text: str) -> str:
    """Return what a prompt asks in plain letters: the decoded stretch if there is one, else the text itself.

    The encodings of the seed prompts are told exactly; whatever else was disguised is left to ``normalise``.
    """
    found = find_encoded(text)
    return normalise(text).asked if found is None else found.plain


def _payloads(text: str) -> Iterator[str]:
    pieces = [text, *_PAYLOAD_BREAK.split(text)]
    for piece in pieces:
        stripped = piece.strip()
        if len(stripped) >= _MIN_PAYLOAD_CHARS:
            yield stripped


def _familiarity(text: str) -> float:
    """Share of the words of ``text`` that are frequent words; digits inside a word spoil it."""
    words = _bare_words(text)
    return sum(word in _WORDS for word in words) / max(1, len(words))


def _bare_words(text: str) -> list[str]:
    return [word.strip(".,!?;'\"") for word in text.lower().split()]
