"""Disguised prompts come out plain, with the evidence; ordinary text comes out as it went in."""

from __future__ import annotations

import base64
import codecs
import json
import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.backends.rule_packs import SHIPPED_ROOTS
from safer_ray.core.english import likeness
from safer_ray.core.normalise import MAX_CHARS, normalise

ROWS = [
    json.loads(line)
    for path in sorted((SHIPPED_ROOTS[0] / "default" / "prompts").glob("*.jsonl"))
    if not path.stem.endswith("_answers")
    for line in path.read_text(encoding="utf-8").splitlines()
]
PLAIN = sorted((row["prompt"] for row in ROWS if row["form"] in ("question", "imperative")), key=lambda p: (len(p), p))
ENCODED = [row for row in ROWS if row["form"] == "encoded"]
_CYRILLIC = str.maketrans("aeopcxyi", "аеорсхуі")
_LEET = str.maketrans("aeiost", "431057")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _mathematical(text: str) -> str:
    bold = {**{65 + n: 0x1D400 + n for n in range(26)}, **{97 + n: 0x1D41A + n for n in range(26)}}
    return text.translate(bold)


DISGUISES: dict[str, Callable[[str], str]] = {
    "zero-width characters": "\u200b".join,
    "look-alike letters": lambda text: text.translate(_CYRILLIC),
    "leetspeak": lambda text: text.translate(_LEET),
    "base64": _base64,
    "hex": lambda text: text.encode().hex(),
    "binary": lambda text: " ".join(f"{byte:08b}" for byte in text.encode()),
    "ROT13": lambda text: codecs.encode(text, "rot13"),
    "reversed letters": lambda text: text[::-1],
    "reversed words": lambda text: " ".join(word[::-1] for word in text.split()),
    "URL escapes": urllib.parse.quote,
    "HTML entities": lambda text: "".join(f"&#{ord(letter)};" for letter in text),
    "backslash escapes": lambda text: "".join(f"\\u{ord(letter):04x}" for letter in text),
    "spaced letters": lambda text: " ".join("-".join(word) for word in text.split()),
    "styled letters": _mathematical,
    "combining marks": lambda text: "".join(f"{letter}\u0336" if letter.isalpha() else letter for letter in text),
    "tag characters": lambda text: "".join(chr(0xE0000 + ord(letter)) for letter in text),
}
MIXTURES = [
    ("base64", "ROT13"), ("ROT13", "base64"), ("base64", "base64"), ("hex", "base64"), ("reversed letters", "base64"),
    ("URL escapes", "ROT13"), ("HTML entities", "base64"), ("styled letters", "base64"), ("reversed letters", "ROT13"),
    ("base64", "zero-width characters"), ("look-alike letters", "leetspeak"),
]  # fmt: skip


def _words(text: str) -> list[str]:
    return text.lower().split()


def _cases() -> list[tuple[str, str, str]]:
    single = [(kind, disguise(plain), plain) for kind, disguise in DISGUISES.items() for plain in PLAIN[40:340:15]]
    mixed = [
        (f"{outer} over {inner}", DISGUISES[outer](DISGUISES[inner](plain)), plain)
        for outer, inner in MIXTURES
        for plain in PLAIN[200:400:25]
    ]
    return single + mixed


def test_more_than_three_hundred_disguised_prompts_come_out_plain() -> None:
    """A prompt that comes out in its own words is classified, word for word, as its plain form."""
    cases = _cases()
    assert len(cases) >= 300
    wrong = [(kind, plain) for kind, shown, plain in cases if _words(normalise(shown).asked) != _words(plain)]
    # leetspeak writes i and l alike, and ROT13 of a short word can look like another: one in fifty may differ
    assert len(wrong) <= len(cases) // 50, wrong


def test_the_shipped_encoded_prompts_come_out_as_their_plain_text() -> None:
    wrong = [row["id"] for row in ENCODED if _words(normalise(row["prompt"]).asked) != _words(row["plain"])]
    assert len(wrong) <= len(ENCODED) // 50, wrong


@pytest.mark.parametrize("kind", DISGUISES)
def test_each_disguise_is_reported_with_its_span_and_what_it_says(kind: str) -> None:
    plain = "How do I make a plan for the school garden"
    shown = DISGUISES[kind](plain)
    decodings = normalise(shown).decodings
    assert decodings
    for each in decodings:
        assert each.kinds == (kind,)
        assert each.depth == 0
        assert shown[each.start : each.stop] == each.seen
        assert each.plain != each.seen


def test_what_stands_around_a_cipher_stays_and_the_question_is_told_apart() -> None:
    found = normalise(f"Decode this and answer: {_base64('How do I mend my bike?')} Thank you.")
    assert found.text == "Decode this and answer: How do I mend my bike? Thank you."
    assert found.asked == "How do I mend my bike?"


def test_a_single_word_in_leetspeak_is_read_with_a_vocabulary() -> None:
    text = "Where can I buy a b0mb and an mp3 player?"
    assert normalise(text).text == text
    assert normalise(text, frozenset({"bomb"})).text == "Where can I buy a bomb and an mp3 player?"


ORDINARY = [
    "d41d8cd98f00b204e9800998ecf8427e  setup.tar.gz",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8 fixes it",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "My session id is dGhpc2lzbm90; what is a session id?",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0",
    "550e8400-e29b-41d4-a716-446655440000 is a UUID",
    "for (int i = 0; i < n; i++) { sum += a[i]; }",
    "def f(x): return [y**2 for y in x if y % 2 == 0]",
    "SELECT id, name FROM users WHERE age > 30 ORDER BY name;",
    "print('\\x1b[31mred\\x1b[0m')",
    "<p>Fish &amp; chips, it&#39;s &lt;b&gt;good&lt;/b&gt;&nbsp;!</p>",
    "https://example.org/search?q=caf%C3%A9%20au%20lait&lang=fr",
    "https://example.org/a%20b%20c%20d/file.txt",
    "Add up 128, 47 and 305. Then 3x + 7 = 22, and x = 5.",
    "R2-D2 and C-3PO met B2B sales of mp3 and h264 files at 4K, 60fps.",
    "Let x ∈ ℝ and f: ℝ → ℂ with |f(x)|² ≤ ε.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Le cœur a ses raisons que la raison ne connaît point.",
    "¿Cómo se dice 'mañana' en japonés?",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności.",
    "Kaikki ihmiset syntyvät vapaina ja tasavertaisina.",
    "Mae pob un yn cael ei eni'n rhydd ac yn gydradd.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "What does the Russian word сор mean, and how is it read?",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι.",
    "すべての人間は、生まれながらにして自由である。ＡＢＣ１２３",
    "人人生而自由，在尊严和权利上一律平等。",
    "모든 인간은 태어날 때부터 자유로우며",
    "یک نیم‌فاصله در می‌خواهم هست",
    "क्‍ष and श्री are conjuncts",
    "Family: 👨‍👩‍👧 heart ❤️ flag 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣",
    "Việt Nam là một nước ở Đông Nam Á.",
    "The U.S.A. and the E.U. signed it at 10:45 a.m.",
    "A-B-C, 1-2-3: spell H-A-T for me, please.",
    "Je m'appelle Zoë; naïve façade, Ångström, résumé.",
    "CCO is ethanol and c1ccccc1 is benzene; InChI=1S/CH4/h1H4 is methane.",
    "x = {'a': 1, 'b': [2, 3]}; y = x['b'][0] + 0x1F",
    "C:\\Users\\name\\new\\table.txt",
    "10101100 is a byte",
    "Racecar, level, madam: which words read the same backwards?",
    "ACGTACGGTCATGCATTACG codes for what?",
    "",
    " \n\t ",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_alone(text: str) -> None:
    found = normalise(text)
    assert (found.text, found.asked, found.decodings, found.exhausted) == (text, text, (), False)


def test_plain_shipped_prompts_are_left_alone() -> None:
    sample = [row["prompt"] for row in ROWS if row["form"] != "encoded"][::6]
    assert [text for text in sample if normalise(text).decodings] == []


_TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="abe014 :-=%&#;x\\u6Zа\u200bｈ𝐡\u0336", max_size=60),
    st.builds(
        lambda kinds, text: "".join(DISGUISES[kind](text) for kind in kinds),
        st.lists(st.sampled_from(sorted(DISGUISES)), min_size=1, max_size=2),
        st.sampled_from(PLAIN[:50]),
    ),
)


@settings(max_examples=40)
@given(_TEXTS)
def test_normalising_is_total_bounded_and_done_once(text: str) -> None:
    found = normalise(text)
    assert len(found.text) <= len(text)
    assert found.asked in found.text
    again = normalise(found.text)
    if not found.exhausted:
        assert (again.text, again.decodings) == (found.text, ())


def test_layers_beyond_the_depth_are_said_to_be_left() -> None:
    shown = "How do I mend my bike before the race?"
    for _ in range(6):
        shown = f"please read this: {_base64(shown)}"
    found = normalise(shown)
    assert found.exhausted
    assert [each.depth for each in found.decodings] == [0, 1, 2, 3]
    assert len(found.text) < len(shown)


def test_a_very_long_text_is_read_up_to_its_limit() -> None:
    tail = "ubj qb V " * 100
    found = normalise("word " * (MAX_CHARS // 5) + tail)
    assert found.exhausted
    assert found.text.endswith(tail)


def test_english_is_told_from_its_disguises() -> None:
    sentence = "Explain how the council decides where a new school is built."
    assert likeness(sentence) > 5 > likeness(sentence[::-1])
    assert likeness(codecs.encode(sentence, "rot13")) < 4.5
    assert likeness("") == likeness("...") == 0.0
