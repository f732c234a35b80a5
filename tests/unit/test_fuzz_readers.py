"""Readers of foreign text against made-up inputs: refused with one of our errors, or read; never anything else."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.fuzz import READERS, seeds_of, target_of

LAW = settings(max_examples=40, deadline=None)
TAGS = (b"<think>", b"</think>", b"<assessment>", b"</assessment>")
MARKS = (b"- ", b"? ", b"[", b"{", b"]", b"}", b": ", b"&a ", b"*a", b"<<: ", b"!!x ", b"|\n", b"'", b'"', b"\n", b"  ")
TOKENS = (*TAGS, *MARKS, b"\t", b"\0", b"\xff", b"id", b"rules", b"model", b"1e999", b"~", b"=")
broken = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=4), max_size=30).map(b"".join)


@st.composite
def damaged(draw: st.DrawFn, reader: str) -> bytes:
    """A valid input with a piece of it replaced."""
    seed = draw(st.sampled_from(seeds_of(reader)))
    start = draw(st.integers(0, len(seed)))
    return seed[:start] + draw(broken) + seed[start + draw(st.integers(0, 40)) :]


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_takes_or_refuses_whatever_comes(reader: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    read = target_of(reader, tmp_path_factory.mktemp(reader))

    @LAW
    @given(st.one_of(broken, damaged(reader)))
    def law(data: bytes) -> None:
        assert read(data) == read(data), "the same bytes were taken once and refused once"

    law()
    assert any(read(seed) for seed in seeds_of(reader)), "nothing to begin with is valid"


rows = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("at", "event", "phase", "item", "level", "attempt", "final", "counts", "facts", "wall_s", "reason")
events = st.dictionaries(
    st.sampled_from(NAMES), rows | st.sampled_from(["Judged", "Dropped", "Trained", "teach", 0, True])
)


@LAW
@given(st.lists(events, max_size=4))
def test_a_journal_whose_checksums_are_right_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, found: list[dict[str, object]]
) -> None:
    bodies = [b'{"head":{},"at":1.0}', *(json.dumps(row).encode() for row in found)]
    content = b"".join(b"%08x %s\n" % (zlib.crc32(body), body) for body in bodies)
    read = target_of("journal", tmp_path_factory.getbasetemp())
    assert read(content) == read(content)
