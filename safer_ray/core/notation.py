"""Where a text may name a chemical substance: CAS numbers, InChI, InChIKeys, SMILES, formulas and names.

Finds candidates by their form alone; whether one is a substance is for those who can read structures. Names are
compared by digests, so that a list of substances need not spell them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Notation = Literal["inchi", "inchikey", "cas", "smiles", "formula", "name"]

_SALT = "safer-ray substances 1"
_DIGEST_CHARS = 16
_MAX_NAME_WORDS = 5
_MAX_NAME_CHARS = 80

_INCHI = re.compile(r"InChI=1S?/[^\s\"'`<>]+")
_INCHIKEY = re.compile(r"\b[A-Z]{14}-[A-Z]{8}[SN]A-[A-Z]\b")
_CAS = re.compile(r"(?<![\d-])\d{2,7}-\d{2}-\d(?![\d-])")
_FORMULA = re.compile(r"(?<![\w-])(?:[A-Z][a-z]?\d{0,3}){2,12}(?![\w-])")
_ATOM = re.compile(r"([A-Z][a-z]?)(\d*)")
_TOKEN = re.compile(r"\S+")
_SMILES = re.compile(r"(?=.{3,400}$)(?:Cl|Br|[BCNOPSFIKHbcnops0-9@+\-\[\]()=#/\\.%:]|[A-Z](?=[^\[]*\]))*")
_PLAIN_SMILES = re.compile(r"(?:Cl|Br|[BCNOPSFI]){3,60}")
_SMILES_SIGN = re.compile(r"[()=#\[\]:-]|[cnos]\d")
_WORD = re.compile(r"[\w'(\[.-][\w,'()\[\]+.-]*[\w')\]-]|\w")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_AROUND_NAME = ".,-'()[]"
_TRAILING = ".,;:!?\"'`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A stretch ``[start, stop)`` that has the form of ``notation``; ``text`` is it without what is around it."""

    notation: Notation
    start: int
    stop: int
    text: str


def digest(kind: str, text: str) -> str:
    """Return what a list keeps in place of a name, a CAS number or a formula."""
    return hashlib.sha256(f"{_SALT}/{kind}/{text}".encode()).hexdigest()[:_DIGEST_CHARS]


def hill(formula: str) -> str:
    """Return a formula in Hill's order (carbon, hydrogen, then the alphabet), "" if it is none."""
    counts: Counter[str] = Counter()
    at = 0
    for match in _ATOM.finditer(formula.translate(_SUBSCRIPT)):
        if match.start() != at:
            return ""
        counts[match[1]] += int(match[2] or 1)
        at = match.end()
    if at != len(formula) or not counts:
        return ""
    first = [each for each in ("C", "H") if each in counts] if "C" in counts else []
    order = [*first, *sorted(set(counts) - set(first))]
    return "".join(f"{atom}{counts[atom] if counts[atom] > 1 else ''}" for atom in order)


def is_cas(number: str) -> bool:
    """Return whether the last digit of a CAS number checks the others."""
    digits = [int(each) for each in number if each.isdigit()]
    return sum(weight * digit for weight, digit in enumerate(reversed(digits[:-1]), start=1)) % 10 == digits[-1]


def candidates(text: str) -> Iterator[Candidate]:
    """Yield what may be a notation, the surest kinds first; stretches may overlap."""
    notations: tuple[tuple[Notation, re.Pattern[str]], ...] = (("inchi", _INCHI), ("inchikey", _INCHIKEY))
    for notation, pattern in notations:
        for match in pattern.finditer(text):
            yield _candidate(notation, match.start(), match[0].rstrip(_TRAILING))
    for match in _CAS.finditer(text):
        if is_cas(match[0]):
            yield _candidate("cas", match.start(), match[0])
    for match in _TOKEN.finditer(text):
        yield from _smiles(match[0], match.start())
    for match in _FORMULA.finditer(text.translate(_SUBSCRIPT)):
        if match[0].startswith("H") or re.search(r"[a-z\d]", match[0]):  # CHN is a country before it is a formula
            yield _candidate("formula", match.start(), match[0])
    yield from _names(text)


def _candidate(notation: Notation, start: int, text: str) -> Candidate:
    return Candidate(notation=notation, start=start, stop=start + len(text), text=text)


def _smiles(token: str, offset: int) -> Iterator[Candidate]:
    lead = len(token) - len(token.lstrip("\"'`,;:"))
    body = token[lead:].rstrip(_TRAILING)
    if body.startswith("(") and body.endswith(")") and body.count("(") == body.count(")"):
        lead, body = lead + 1, body[1:-1]
    while body.endswith(")") and body.count(")") > body.count("("):
        body = body[:-1]
    if _PLAIN_SMILES.fullmatch(body) or (_SMILES.fullmatch(body) and _SMILES_SIGN.search(body)):
        yield _candidate("smiles", offset + lead, body)


def _names(text: str) -> Iterator[Candidate]:
    words = list(_WORD.finditer(text))
    for size in range(_MAX_NAME_WORDS, 0, -1):
        for first, last in zip(words, words[size - 1 :], strict=False):
            name = text[first.start() : last.end()]
            if len(name) > _MAX_NAME_CHARS or "\n" in name:
                continue
            yield _candidate("name", first.start(), name)
            bare = name.strip(_AROUND_NAME)
            if bare and bare != name:
                yield _candidate("name", first.start() + name.index(bare), bare)
