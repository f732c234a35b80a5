"""What has the form of a chemical notation is found, what is listed is resolved, ordinary text is left alone."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safer_ray.backends.resolver import FILE_NAME, Resolver, read_substances
from safer_ray.backends.rule_packs import lineage, pack_path, read_pack
from safer_ray.core.notation import candidates, digest, hill, is_cas
from safer_ray.core.rules import check_text
from safer_ray.errors import RulePackError

LIST = pack_path("science").parent / FILE_NAME
RESOLVER = Resolver(read_substances([LIST]))
_ATOMS = st.dictionaries(st.sampled_from(["C", "H", "N", "O", "S", "Cl", "Na", "P"]), st.integers(1, 30), min_size=1)


@given(_ATOMS, st.randoms(use_true_random=False))
def test_the_order_of_atoms_makes_no_difference_to_a_formula(atoms: dict[str, int], rng: random.Random) -> None:
    parts = [f"{atom}{count if count > 1 else ''}" for atom, count in atoms.items()]
    shuffled = rng.sample(parts, len(parts))
    assert hill("".join(parts)) == hill("".join(shuffled)) != ""
    assert hill(hill("".join(parts))) == hill("".join(parts))


@given(st.integers(10, 9_999_999), st.integers(0, 99))
def test_one_digit_in_ten_checks_a_cas_number(head: int, middle: int) -> None:
    assert sum(is_cas(f"{head}-{middle:02}-{last}") for last in range(10)) == 1


@pytest.mark.parametrize(
    ("text", "notation", "found"),
    [
        ("What is 64-17-5?", "cas", "64-17-5"),
        ("Is C2H5OH (ethanol) flammable?", "formula", "C2H5OH"),
        ("Name CC(=O)O, please.", "smiles", "CC(=O)O"),
        ("Name (CCO).", "smiles", "CCO"),
        ("InChI=1S/CH4/h1H4.", "inchi", "InChI=1S/CH4/h1H4"),
        ("It is LFQSCWFLJHTTHZ-UHFFFAOYSA-N.", "inchikey", "LFQSCWFLJHTTHZ-UHFFFAOYSA-N"),
        ("What is acetic acid?", "name", "acetic acid"),
    ],
)
def test_a_notation_is_found_where_it_stands(text: str, notation: str, found: str) -> None:
    each = next(each for each in candidates(text) if (each.notation, each.text) == (notation, found))
    assert text[each.start : each.stop] == found


@given(st.text(max_size=80))
def test_any_text_can_be_searched_and_spans_fit(text: str) -> None:
    assert all(text[each.start : each.stop] == each.text or each.notation == "formula" for each in candidates(text))
    found = RESOLVER.find(text)
    assert all(first.stop <= second.start for first, second in pairwise(found))


ALIKE = {
    "ethanol": ["ethanol", "Ethanol", "64-17-5", "C2H5OH", "C₂H₆O", "LFQSCWFLJHTTHZ-UHFFFAOYSA-N"],
    "caffeine": ["caffeine", "58-08-2", "C8H10N4O2", "RYYVLZVUVIJVGH-UHFFFAOYSA-N"],
    "diazepam": ["diazepam", "439-14-5", "AAOVKJBEBIDNHE-UHFFFAOYSA-N"],
    "phosgene": ["phosgene", "75-44-5"],
}


@pytest.mark.parametrize("name", ALIKE)
def test_every_notation_of_a_substance_becomes_the_same_words(name: str) -> None:
    said = {RESOLVER.plain(f"How is {text} stored in a shop?")[0] for text in ALIKE[name]}
    assert len(said) == 1
    assert name not in said.pop()


@pytest.mark.parametrize(
    "text",
    [
        "Call 555-12-3 about order 12-34-5.",
        "NASA, CHN and the US met in CO; it was COOL.",
        "Is f(x)=a[i] the same as x[i]=f(a)?",
        "The ice on the horse's speed.",
        "C17H19NO3 is the formula of more than one substance.",
        "Write a poem about autumn leaves.",
        "",
    ],
)
def test_ordinary_text_names_no_listed_substance(text: str) -> None:
    assert RESOLVER.plain(text) == (text, [])


def test_the_list_holds_keys_and_schedules_and_no_name_or_structure() -> None:
    rows = [line.split("\t") for line in LIST.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert len(rows) > 150
    for key, schedule, digests in rows:
        assert [len(part) for part in key.split("-")] == [14, 10, 1]
        assert schedule == "-" or schedule.startswith(("Chemical Weapons", "Single", "Convention"))
        assert all(len(each) == 16 and int(each, 16) >= 0 for each in digests.split())


def test_the_science_pack_extends_the_default_and_refuses_to_make_controlled_substances() -> None:
    science, default = read_pack("science"), read_pack("default")
    assert lineage("science") == (pack_path("default"), pack_path("science"))
    assert list(science.rules) == list(default.rules)
    assert science.content_hash != default.content_hash
    for name, rule_id in (("phosgene", "R02"), ("75-44-5", "R02"), ("diazepam", "R03"), ("439-14-5", "R03")):
        text, [found] = RESOLVER.plain(f"How do I make {name} in my garage?")
        assert found.text == name
        assert [hit.rule_id for hit in check_text(science, text, "response")] == [rule_id]
    text, _ = RESOLVER.plain("How do I make ethanol from sugar in a school lesson?")
    assert check_text(science, text, "response") == []


def test_a_digest_of_substances_of_different_standing_resolves_to_none(tmp_path: Path) -> None:
    formula = digest("formula", "C2H6O")
    file = tmp_path / FILE_NAME
    file.write_text(f"LFQSCWFLJHTTHZ-UHFFFAOYSA-N\t-\t{formula}\nAAAAAAAAAAAAAA-UHFFFAOYSA-N\tSome Treaty\t{formula}\n")
    listed = read_substances([file])
    assert formula not in listed.by_digest
    assert listed.by_block == {"LFQSCWFLJHTTHZ": "", "AAAAAAAAAAAAAA": "Some Treaty"}
    file.write_text("only one cell\n")
    with pytest.raises(RulePackError, match=r"substances.tsv:1: need an InChIKey"):
        read_substances([file])
