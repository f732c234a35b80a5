"""Readers of foreign text against made-up inputs: refused with one of our errors, or read; never anything else."""

from __future__ import annotations

import sys
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


@pytest.mark.parametrize("reader", [reader for reader in READERS if reader != "journal"])
def test_a_reader_takes_or_refuses_whatever_comes(reader: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    read = target_of(reader, tmp_path_factory.mktemp(reader))

    @LAW
    @given(st.one_of(broken, damaged(reader)))
    def law(data: bytes) -> None:
        read(data)

    law()
    for seed in seeds_of(reader):
        read(seed)
