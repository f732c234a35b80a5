"""The text of each token adds up to the text of all of them, whatever the tokens are."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from safer_ray.backends.models import split_text


def as_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def as_words(ids: Sequence[int]) -> str:
    """Like SentencePiece: every token brings a space, and the first one of a text loses it."""
    return "".join(f" w{i}" for i in ids).removeprefix(" ")


def backwards(ids: Sequence[int]) -> str:
    return as_words(list(reversed(ids)))


BYTES = st.lists(st.integers(0, 255), max_size=40)


@given(BYTES)
def test_pieces_join_to_the_whole_text_even_if_it_is_not_utf8(ids: list[int]) -> None:
    pieces = split_text(ids, as_bytes)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == as_bytes(ids)


@given(st.text(max_size=30))
def test_a_character_of_several_tokens_stands_with_its_last_one(text: str) -> None:
    try:
        ids = list(text.encode())
    except UnicodeEncodeError:
        return
    ends = [character for character in text for _ in character.encode()]
    for position, piece in enumerate(split_text(ids, as_bytes)):
        last = position + 1 == len(ids) or (ids[position + 1] & 0xC0) != 0x80
        assert piece == (ends[position] if last else "")


@given(BYTES)
def test_a_space_that_only_inner_tokens_have_is_kept_once(ids: list[int]) -> None:
    pieces = split_text(ids, as_words)
    assert pieces == [f"w{i}" if position == 0 else f" w{i}" for position, i in enumerate(ids)]


@given(BYTES)
def test_a_tokenizer_that_rewrites_earlier_text_still_adds_up(ids: list[int]) -> None:
    assert "".join(split_text(ids, backwards)) == backwards(ids)
