"""Letters that look like others, letters nobody sees, and letters written as escapes: what they stand for.

Each finder returns edits to a text and leaves alone what ordinary text holds: other scripts, emoji, accents,
mathematics, markup and links. Where a sign can be both, it is read as a disguise only in company.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Replace the half-open span ``[start, stop)`` of a text by ``plain``; ``kinds`` say how it was disguised."""

    kinds: tuple[str, ...]
    start: int
    stop: int
    plain: str


_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f"
    "\ufeff\u3164\uffa0\U000e0100-\U000e01ef]+"
)
_TAGS = re.compile(
    "(?<![\U0001f3f4\U000e0020-\U000e007e])[\U000e0020-\U000e007e]{2,}\U000e007f?"
)  # a black flag starts a flag emoji
_WORD = re.compile(r"[^\W\d_]+")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_MARKED = re.compile("[A-Za-z][\u0300-\u036f\u0489\u20d0-\u20f0]+")
_MIN_MARKS = 3
_MIN_ESCAPES = 3

_LOOKALIKES = {
    # Cyrillic, Greek, Armenian and Latin letters drawn like the ASCII letter they stand for
    "a": "аαɑ", "b": "Ьƅ", "c": "сϲᴄ", "d": "ԁɗ", "e": "еєҽ", "f": "ſϝ", "g": "ɡց", "h": "һհ", "i": "іıιӏ",
    "j": "јϳ", "k": "кκᴋ", "l": "ⅼ", "m": "мᴍ", "n": "пηո", "o": "оοօσ", "p": "рρ", "q": "ԛզ", "r": "гᴦ",
    "s": "ѕꜱ", "t": "тτᴛ", "u": "υսцᴜ", "v": "ѵνᴠ", "w": "ԝωᴡ", "x": "хχ", "y": "уγүу", "z": "ᴢ",
    "A": "АΑᎪ", "B": "ВΒᏴ", "C": "СϹᏟ", "E": "ЕΕᎬ", "G": "Ԍ", "H": "НΗᎻ", "I": "ІΙӀ", "J": "ЈᎫ", "K": "КΚᏦ",
    "L": "Ꮮ", "M": "МΜᎷ", "N": "Ν", "O": "ОΟՕ", "P": "РΡᏢ", "S": "ЅՏ", "T": "ТΤᎢ", "V": "ѴᏙ", "W": "Ԝ",
    "X": "ХΧ", "Y": "ҮΥ", "Z": "ΖᏃ",
}  # fmt: skip
_LOOKALIKE = {ord(other): letter for letter, others in _LOOKALIKES.items() for other in others}
_ASCII_LETTER = re.compile("[A-Za-z]")
_ASCII_WORD = re.compile("[A-Za-z]{2,}")


def invisible(text: str) -> list[Edit]:
    """Find signs without width between ASCII ones, where no script needs them, and text hidden in tag signs."""
    found = [
        Edit(kinds=("tag characters",), start=m.start(), stop=m.end(), plain=_untagged(m[0]))
        for m in _TAGS.finditer(text)
    ]
    for m in _INVISIBLE.finditer(text):
        before, after = text[m.start() - 1 : m.start()], text[m.end() : m.end() + 1]
        if before.isascii() and after.isascii() and before + after:
            found.append(Edit(kinds=("zero-width characters",), start=m.start(), stop=m.end(), plain=""))
    return found


def _untagged(tags: str) -> str:
    return "".join(chr(ord(tag) - 0xE0000) for tag in tags if ord(tag) < 0xE007F)


def _compatible(letter: str) -> str:
    """Return the ASCII sign that a styled one (full width, mathematical, circled) is, else itself."""
    code = ord(letter)
    if code < 0x250:
        return letter
    plain = unicodedata.normalize("NFKD", letter)
    full_width = 0xFF01 <= code <= 0xFF5E or code == 0x3000
    return plain if len(plain) == 1 and plain.isascii() and (plain.isalnum() or full_width) else letter


def styled(text: str) -> list[Edit]:
    """Find words in styled letters; a single one, as mathematics uses it, only where it has company."""
    if text.isascii() or _CJK.search(text):
        return []  # full-width letters are ordinary beside Chinese, Japanese and Korean
    plain = "".join(map(_compatible, text))
    changed = [at for at, (old, new) in enumerate(zip(text, plain, strict=True)) if old != new]
    runs = _runs(text, plain, changed, "styled letters")
    in_words = any(sum(map(str.isalpha, run.plain)) >= _MIN_MARKS for run in runs)
    return runs if in_words else []


def _runs(text: str, plain: str, changed: list[int], kind: str) -> list[Edit]:
    """Return one edit per stretch of changed places with no more than a sign between them."""
    edits: list[Edit] = []
    start = last = -3
    for at in [*changed, len(text) + 3]:
        if at > last + 2:
            if last >= 0:
                edits.append(Edit(kinds=(kind,), start=start, stop=last + 1, plain=plain[start : last + 1]))
            start = at
        last = at
    return edits


def marked(text: str) -> list[Edit]:
    """Find ASCII letters under marks no language puts there: strokes, overlays, stacks."""
    found = [
        Edit(kinds=("combining marks",), start=m.start(), stop=m.end(), plain=m[0][0])
        for m in _MARKED.finditer(text)
        if len(unicodedata.normalize("NFC", m[0])) > 1
    ]
    return found if len(found) >= _MIN_MARKS else []


def lookalikes(text: str) -> list[Edit]:
    """Find words that mix ASCII letters with letters of other scripts drawn like ASCII ones.

    A word wholly in other letters is read as ASCII only between words that are: Greek and Russian stay.
    """
    if text.isascii():
        return []
    words = list(_WORD.finditer(text))
    plain = {m.start(): m[0].translate(_LOOKALIKE) for m in words}
    disguised = [m for m in words if not m[0].isascii() and plain[m.start()].isascii()]
    mixed = [m for m in disguised if _ASCII_LETTER.search(m[0])]
    foreign = sum(not plain[m.start()].isascii() for m in words)
    latin = sum(bool(_ASCII_WORD.fullmatch(m[0])) for m in words)
    whole = disguised if mixed and not foreign and len(mixed) + latin > len(disguised) - len(mixed) else mixed
    return [Edit(kinds=("look-alike letters",), start=m.start(), stop=m.end(), plain=plain[m.start()]) for m in whole]


_ENTITY = re.compile(r"&(?:#[xX][0-9a-fA-F]{1,6}|#[0-9]{1,7});")
_PERCENT = re.compile(r"%[0-9a-fA-F]{2}")
_PERCENT_RUN = re.compile(r"(?:%[0-9a-fA-F]{2})+")
_BACKSLASH = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|u\{[0-9a-fA-F]{1,6}\})")
_TOKEN = re.compile(r"\S+")


def _code_point(digits: str, base: int) -> str:
    number = int(digits, base)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else ""


def entities(text: str) -> list[Edit]:
    """Find HTML entities that spell letters; ``&#39;`` and its like alone are ordinary markup."""
    return _spelled(text, _ENTITY, html.unescape, "HTML entities")


def backslashes(text: str) -> list[Edit]:
    """Find ``\\x48`` and ``\\u0048`` escapes that spell letters."""
    return _spelled(text, _BACKSLASH, lambda found: _code_point(found[2:].strip("{}"), 16), "backslash escapes")


def _spelled(text: str, pattern: re.Pattern[str], read: Callable[[str], str], kind: str) -> list[Edit]:
    found = [(m, read(m[0])) for m in pattern.finditer(text)]
    if sum(plain.isalnum() for _, plain in found) < _MIN_ESCAPES:
        return []
    return [Edit(kinds=(kind,), start=m.start(), stop=m.end(), plain=plain) for m, plain in found]


def percents(text: str) -> list[Edit]:
    """Find percent escapes that spell letters, or the gaps between words outside a link."""
    return [edit for m in _TOKEN.finditer(text) for edit in _percents(m[0], m.start())]


def _percents(token: str, offset: int) -> list[Edit]:
    codes = [int(found[1:], 16) for found in _PERCENT.findall(token)]
    letters = sum(chr(code).isalnum() for code in codes if code < 128)
    sentence = codes.count(32) >= 2 and not any(sign in token for sign in ("/", "=", "&"))
    if letters < _MIN_ESCAPES and not sentence:
        return []
    return [
        Edit(kinds=("URL escapes",), start=offset + m.start(), stop=offset + m.end(), plain=_unquoted(m[0]))
        for m in _PERCENT_RUN.finditer(token)
    ]


def _unquoted(run: str) -> str:
    return bytes.fromhex(run.replace("%", "")).decode("utf-8", errors="replace")
