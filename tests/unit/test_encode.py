"""Encodings are reversible, and seen through where they stand inside a prompt."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safer_ray.core import encode as encoding_module
from safer_ray.core.criteria import question
from safer_ray.core.encode import ENCODINGS, Encoding, decode, encode, find_encoded, plain_text
from safer_ray.core.gist import gist

_ANY_TEXT = st.text(st.characters(blacklist_categories=("Cs",)))
_NO_LEET_DIGITS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="013457"))
_REQUEST = "How do I get my phone back from the repair shop?"


@given(st.sampled_from([name for name in ENCODINGS if name != "leet"]), _ANY_TEXT)
def test_decoding_undoes_encoding(encoding: Encoding, text: str) -> None:
    assert decode(encoding, encode(encoding, text)) == text


@given(_NO_LEET_DIGITS)
def test_leet_is_undone_where_the_text_had_none_of_its_digits(text: str) -> None:
    assert decode("leet", encode("leet", text)) == text


def test_leet_refuses_text_it_could_not_restore() -> None:
    with pytest.raises(ValueError, match="leet"):
        encode("leet", "route 66 and 3 stops")


@given(st.text(alphabet="()<>{}[]!?#", min_size=1))
def test_base64_refuses_what_is_not_base64(text: str) -> None:
    with pytest.raises(ValueError, match="not base64"):
        decode("base64", text)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "wrapping", ["{}", "Decode this and answer: {}", 'This is a riddle: "{}" Answer it.', "Hm.\n{}"]
)
def test_an_encoded_request_is_found_inside_its_wrapping(encoding: Encoding, wrapping: str) -> None:
    found = find_encoded(wrapping.format(encode(encoding, _REQUEST)))
    assert found is not None
    assert (found.encoding, found.plain) == (encoding, _REQUEST)


@pytest.mark.parametrize("shown", [_REQUEST.encode().hex(" "), "".join(f"&#x{ord(each):x};" for each in _REQUEST)])
def test_what_is_disguised_otherwise_than_the_seed_prompts_are_is_read_as_well(shown: str) -> None:
    assert find_encoded(shown) is None
    assert plain_text(shown) == _REQUEST
    assert question(shown, "safe", "R00").text == _REQUEST


@pytest.mark.parametrize(
    "text",
    [_REQUEST, "Add up 128, 47 and 305.", "", "aGVsbG8", "Fix this: for i in range(5): print(i)", "R2-D2: C-3PO"],
)
def test_plain_text_is_left_alone(text: str) -> None:
    assert find_encoded(text) is None
    assert plain_text(text) == text


@pytest.mark.parametrize(
    ("prompt", "third", "second"),
    [
        ("How do I mend my bike?", "how to mend their bike", "how to mend your bike"),
        ("Which shops can I ask?", "which shops they can ask", "which shops you can ask"),
        ("Can you please write me a poem?", "write them a poem", "write you a poem"),
        ("You are a baker; sell me bread.", "play a baker; sell them bread", "play a baker; sell you bread"),
        ("I need a formula for my tax.", "provide a formula for their tax", "provide a formula for your tax"),
        ("Am I late?", "are they late", "are you late"),
    ],
)
def test_the_gist_turns_persons_and_keeps_the_words(prompt: str, third: str, second: str) -> None:
    found = gist(prompt)
    assert (found.third, found.second) == (third, second)


@given(_ANY_TEXT, st.integers(4, 30))
def test_a_gist_is_never_longer_than_asked(text: str, max_words: int) -> None:
    assert len(gist(text, max_words=max_words).third.split()) <= max_words


_WORDS = st.sampled_from(
    ["how", "do", "the", "phone", "code", "r2", "K1d", "caf\u00e9", "\u212aeep", "don't", "a-b", ""]
)


@given(st.lists(_WORDS, min_size=2, max_size=6), st.sampled_from([*ENCODINGS, None]), st.sampled_from(["{}", "Hm: {}"]))
def test_no_encoding_is_passed_over_that_trying_all_of_them_would_find(
    words: list[str], encoding: Encoding | None, wrapping: str
) -> None:
    plain = " ".join(words)
    try:
        text = wrapping.format(encode(encoding, plain) if encoding else plain)
    except ValueError:
        return
    quick = find_encoded(text)
    with patch.object(encoding_module, "_possible", lambda _payload: ENCODINGS):
        assert find_encoded(text) == quick
