"""Whole stretches of text in base64, hex, binary, ROT13, leetspeak, reversed or spaced letters, found and read.

A stretch is read as a cipher only if what comes out is far more like English than what stood there; tokens that
decode to bytes must come out as several printable words. Hashes, code and other languages do not.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import itertools
import re
from collections.abc import Callable, Iterator

from safer_ray.core.english import likeness
from safer_ray.core.letters import Edit

_READ_AS_ENGLISH = 4.95
_PLAIN_ALREADY = 5.05
_MIN_GAIN = 0.45
_MIN_PAYLOAD_CHARS = 12
_MIN_BYTES = 8
_MAX_STACK = 3  # ciphers laid over each other in one token
_MANY_SINGLE = re.compile(r"(?:\S(?:\s+|$)){6,}")
_BREAK = re.compile(r"[:\n\"“”()]+\s*")
_SENTENCE = re.compile(r"(?<=[.?!])\s+")

_BASE64 = re.compile(r"(?<![\w+/=-])=?={0,1}[A-Za-z0-9+/_-]{12,}={0,2}(?![\w+/-])")
_HEX = re.compile(r"(?<!\w)(?:(?:0x|\\x)?[0-9a-fA-F]{2}[\s,:-]{0,2}){8,}(?!\w)")
_BINARY = re.compile(r"(?<!\w)(?:[01]{8}\s?){6,}(?!\w)")
_WORDY_SHARE = 0.7
_ZERO_WIDTH = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_UNPRINTED = "\n\t\r" + _ZERO_WIDTH
_NOT_HEX = re.compile(r"0x|\\x|[\s,:-]")


def _from_base64(token: str) -> bytes:
    body = token.strip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)


def _from_hex(token: str) -> bytes:
    return bytes.fromhex(_NOT_HEX.sub("", token))


def _from_binary(token: str) -> bytes:
    bits = re.sub(r"\s", "", token)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


_BYTES: dict[str, tuple[re.Pattern[str], Callable[[str], bytes]]] = {
    "binary": (_BINARY, _from_binary),
    "hex": (_HEX, _from_hex),
    "base64": (_BASE64, _from_base64),
}
_TURNS: dict[str, Callable[[str], str]] = {
    "ROT13": lambda text: codecs.encode(text, "rot13"),
    "reversed letters": lambda text: text[::-1],
}


def tokens(text: str) -> list[Edit]:
    """Find runs of base64, hex or binary digits that hold words, also reversed or in ROT13, also twice over."""
    found: list[Edit] = []
    for pattern, _ in _BYTES.values():
        for m in pattern.finditer(text):
            token = m[0].rstrip()
            if read := _read_token(token, _MAX_STACK):
                kinds, plain = read
                found.append(Edit(kinds=kinds, start=m.start(), stop=m.start() + len(token), plain=plain))
    return found


def _read_token(token: str, stack: int) -> tuple[tuple[str, ...], str] | None:
    """Return (ciphers, outermost first, and the words) of a token, or None if it holds no words."""
    turned = [((), token), *(((kind,), turn(token)) for kind, turn in _TURNS.items())]
    for (turns, shown), (kind, (pattern, decode)) in itertools.product(turned, _BYTES.items()):
        plain = _decoded(shown, pattern, decode)
        if plain is None:
            continue
        if _is_words(plain):
            return (*turns, kind), plain
        if stack > 1 and not re.search(r"\s", plain.strip()) and (inner := _read_token(plain.strip(), stack - 1)):
            return (*turns, kind, *inner[0]), inner[1]
    return None


def _decoded(token: str, pattern: re.Pattern[str], decode: Callable[[str], bytes]) -> str | None:
    if not pattern.fullmatch(token):
        return None
    try:
        plain = decode(token).decode("utf-8")
    except (ValueError, binascii.Error):
        return None
    return plain if len(plain) >= _MIN_BYTES and all(c.isprintable() or c in _UNPRINTED for c in plain) else None


def _is_words(plain: str) -> bool:
    shown = "".join(c for c in plain if c not in _ZERO_WIDTH)
    letters = sum(c.isalnum() or c.isspace() or c in "-.,'" for c in shown)
    return len(shown.split()) >= 2 and letters >= _WORDY_SHARE * len(shown)


def stretches(text: str, vocabulary: frozenset[str] = frozenset()) -> list[Edit]:
    """Find stretches in ROT13, leetspeak, reversed or spaced letters, or two of them; the best reading of each.

    Looked for in the whole text, between its colons, quotes, brackets and line breaks, and in its sentences.
    """
    found: list[tuple[float, Edit]] = []
    for start, stop in _payloads(text):
        if (read := _read_stretch(text[start:stop], vocabulary)) is not None:
            gain, kinds, plain = read
            edit = _trimmed(Edit(kinds=kinds, start=start, stop=stop, plain=plain), text)
            found.append((gain * (stop - start), edit))
    kept: list[Edit] = []
    for _, edit in sorted(found, key=lambda each: (-each[0], each[1].start)):
        if all(edit.stop <= other.start or other.stop <= edit.start for other in kept):
            kept.append(edit)
    return kept


def _trimmed(edit: Edit, text: str) -> Edit:
    """Return the edit without the pieces at its ends that it leaves as they are."""
    seen, plain = text[edit.start : edit.stop], edit.plain
    shorter = min(len(seen), len(plain))
    same = next((at for at in range(shorter) if seen[at] != plain[at]), shorter)
    left = max((m.end() for m in _BREAK.finditer(seen) if m.end() <= same), default=0)
    seen, plain = seen[left:], plain[left:]
    shorter = min(len(seen), len(plain))
    same = next((at for at in range(shorter) if seen[-1 - at] != plain[-1 - at]), shorter)
    right = max((len(seen) - m.start() for m in _BREAK.finditer(seen) if len(seen) - m.start() <= same), default=0)
    start, stop = edit.start + left, edit.stop - right
    return Edit(kinds=edit.kinds, start=start, stop=stop, plain=plain[: len(plain) - right])


def _read_stretch(payload: str, vocabulary: frozenset[str]) -> tuple[float, tuple[str, ...], str] | None:
    """Return (gain in likeness to English, ciphers, plain text) of the best reading, or None if none is better.

    Two ciphers are tried only where one does not do.
    """
    before = 0.0 if _MANY_SINGLE.fullmatch(payload) else likeness(payload)
    if before >= _PLAIN_ALREADY:
        return None
    once: list[_Reading] = [
        ((kind,), plain) for kind, read in _STRETCH.items() if (plain := read(payload, vocabulary)) is not None
    ]
    for readings in (once, _again(once, vocabulary)):
        scored = [(likeness(plain) + _manners(plain), kinds, plain) for kinds, plain in readings if plain != payload]
        score, kinds, plain = max(scored, key=lambda each: each[0], default=(0.0, (), ""))
        if score >= _READ_AS_ENGLISH and score - before >= _MIN_GAIN:
            return score - before, kinds, plain
    return None


def _again(once: list[_Reading], vocabulary: frozenset[str]) -> Iterator[_Reading]:
    for kinds, plain in once:
        for kind, read in _STRETCH.items():
            twice = read(plain, vocabulary) if kind not in kinds else None
            if twice is not None and twice != plain:
                yield (*kinds, kind), twice


def _manners(plain: str) -> float:
    """Return a small bonus for a capital at the start and a stop at the end, a small malus for the reverse."""
    starts, ends = plain[:1].isupper(), plain[-1:] in tuple(".?!")
    return 0.05 * (starts + ends) - 0.05 * (plain[:1] in tuple(".?!") or plain[-1:].isupper())


def _payloads(text: str) -> list[tuple[int, int]]:
    """Return the spans worth reading, without blanks at their ends, each once."""
    spans: dict[tuple[int, int], None] = {}
    for splitter in (None, _BREAK, _SENTENCE):
        start = 0
        for stop, after in [*((m.start(), m.end()) for m in (splitter.finditer(text) if splitter else ())), (None, 0)]:
            piece = text[start:stop]
            left = start + len(piece) - len(piece.lstrip())
            right = left + len(piece.strip())
            if right - left >= _MIN_PAYLOAD_CHARS:
                spans[left, right] = None
            start = after
    return list(spans)


def _by_words(text: str, _: frozenset[str]) -> str:
    return re.sub(r"\S+", lambda m: m[0][::-1], text)


def _despaced(text: str, _: frozenset[str]) -> str | None:
    """Join letters held apart by one sign (``H-o-w c-a-n``) or by blanks (``H o w   c a n``); None if they are not."""
    if re.search(r"\S(?: {2,}| / )\S", text):
        words = [word.split(" ") for word in re.split(r" {2,}| / ", text)]
        apart = all(len(letter) == 1 for word in words for letter in word)
        return " ".join("".join(word) for word in words) if apart else None
    pieces = text.split(" ")
    joined = [word[::2] if _apart(word) else word for word in pieces]
    return " ".join(joined) if sum(map(_apart, pieces)) * 2 > len(pieces) else None


def _apart(word: str) -> bool:
    signs = set(word[1::2])
    return len(word) == 1 or (len(word) % 2 == 1 and len(signs) == 1 and signs <= set("-._*+|·~"))


_LEET = {"4": "a", "@": "a", "8": "b", "3": "e", "9": "g", "1": "il", "!": "il", "0": "o", "5": "s", "$": "s"}
_LEET |= {"7": "t", "2": "z"}
_LEET_WORD = re.compile(r"[A-Za-z0-9@!$']*[A-Za-z0-9@$]")
_MIXED_WORD = re.compile(r"(?=[A-Za-z@!$']*[0-9])[A-Za-z0-9@!$']*[A-Za-z][A-Za-z0-9@$]*")
_MAX_VARIANTS = 16
_L_FOR_ONE_COSTS = 0.5


def _variants(word: str) -> list[str]:
    """Return what a word in leetspeak may say, the likeliest first."""
    choices = itertools.product(*(_LEET.get(letter, letter) for letter in word))
    words = ["".join(letters) for letters in itertools.islice(choices, _MAX_VARIANTS)]
    return sorted(words, key=lambda each: _L_FOR_ONE_COSTS * each.count("l") - likeness(each)) if words[1:] else words


def _unleeted(text: str, vocabulary: frozenset[str]) -> str | None:
    """Read the digits inside words as letters; None unless they stand in a third of the words."""
    words = _LEET_WORD.findall(text)
    if 3 * sum(not word.isalpha() for word in words) < len(words) or len(_MIXED_WORD.findall(text)) < 2:
        return None
    return _LEET_WORD.sub(lambda m: _unleeted_word(m[0], vocabulary), text)


def _unleeted_word(word: str, vocabulary: frozenset[str]) -> str:
    variants = _variants(word)
    return next((each for each in variants if each.lower() in vocabulary), variants[0])


_Reading = tuple[tuple[str, ...], str]
"""The ciphers of a stretch, outermost first, and what it says."""
_STRETCH: dict[str, Callable[[str, frozenset[str]], str | None]] = {
    "spaced letters": _despaced,
    "leetspeak": _unleeted,
    "ROT13": lambda text, _: codecs.encode(text, "rot13"),
    "reversed letters": lambda text, _: text[::-1],
    "reversed words": _by_words,
}


def leet_words(text: str, vocabulary: frozenset[str]) -> list[Edit]:
    """Find single words in leetspeak: mixed letters and digits that come out as a word of ``vocabulary``."""
    found = []
    for m in _LEET_WORD.finditer(text):
        word = m[0]
        if len(word) < _MIN_LEET_WORD or word.isalpha() or not any(c.isalpha() for c in word):
            continue
        plain = next((each for each in _variants(word) if each.lower() in vocabulary), None)
        if plain:
            found.append(Edit(kinds=("leetspeak",), start=m.start(), stop=m.end(), plain=plain))
    return found


_MIN_LEET_WORD = 4
