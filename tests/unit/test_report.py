"""The report says what the run directory holds, escapes all of it, and folds harmful text away."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_fixture import COMPLIED_TEXT, make_outcomes, make_pairs, make_prompts, make_summary, write_run

from safer_ray import plots, run_record
from safer_ray.cards import LONGEST_TEXT, pair_cards, passage, prefix_steps, prompt_cards, sampled
from safer_ray.core.metrics import PairedChange, evaluate_outcomes, mcnemar_exact_p
from safer_ray.core.trace import Trace, segments
from safer_ray.errors import JournalError
from safer_ray.records import Message, Outcome, Prompt, StepPair
from safer_ray.report import duration, number, p_value, percent, verdict_of, write_report
from safer_ray.run_record import read_run
from safer_ray.tables import to_table, write_table

law = settings(deadline=None, max_examples=50)
DASH = "\N{EN DASH}"
VOID = {"meta", "br", "input"}
XSS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</div></details></style><iframe src=javascript:alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;script&gt; &amp;#60;b&amp;#62;",
    "<!-- --><![CDATA[ ]]><object data=x>",
    "$\\frac{1}{0}$ %s {0}",
)


@dataclass(slots=True)
class Element:
    tag: str
    attrs: dict[str, str]
    parent: Element | None
    text: str = ""

    def within(self, tag: str, cls: str) -> Iterator[Element]:
        at: Element | None = self
        while at is not None:
            if at.tag == tag and cls in at.attrs.get("class", "").split():
                yield at
            at = at.parent


@dataclass(slots=True)
class Page:
    """A strict reading of the page: every element closed, in order."""

    source: str
    elements: list[Element] = field(default_factory=list)
    texts: list[tuple[str, Element]] = field(default_factory=list)

    def __post_init__(self) -> None:
        page, stack = self, [Element("", {}, None)]

        class Reader(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                element = Element(tag, {name: value or "" for name, value in attrs}, stack[-1])
                page.elements.append(element)
                if tag not in VOID:
                    stack.append(element)

            def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                self.handle_starttag(tag, attrs)
                self.handle_endtag(tag)

            def handle_endtag(self, tag: str) -> None:
                assert stack[-1].tag == tag, f"</{tag}> closes <{stack[-1].tag}>"
                stack.pop()

            def handle_data(self, data: str) -> None:
                stack[-1].text += data
                page.texts.append((data, stack[-1]))

        reader = Reader(convert_charrefs=True)
        reader.feed(self.source)
        reader.close()
        assert len(stack) == 1, f"<{stack[-1].tag}> is never closed"

    def all(self, tag: str, cls: str = "") -> list[Element]:
        return [e for e in self.elements if e.tag == tag and (not cls or cls in e.attrs.get("class", "").split())]

    @property
    def words(self) -> str:
        return " ".join("".join(text for text, _ in self.texts).replace("\xa0", " ").replace("\u202f", " ").split())


def render(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Page:
    return render(run_dir)


def test_the_headline_states_the_measured_shares_of_first_and_last(page: Page) -> None:
    prompts = make_prompts()
    first, last = (evaluate_outcomes(make_outcomes(prompts, name), prompts) for name in ("base", "erpo-2"))
    headline = page.words
    assert f"complies with {100 * (last.asr or 0):.1f} %" in headline
    assert f"down from {100 * (first.asr or 0):.1f} %" in headline
    assert f"refuses {100 * (last.over_refusal or 0):.1f} %" in headline
    word = "unchanged" if first.over_refusal == last.over_refusal else "up"
    assert f"{word} from {100 * (first.over_refusal or 0):.1f} %" in headline
    assert "Measured on 30 unsafe and 50 safe test prompts by the judge rules@1" in headline
    low, high = last.asr_ci or (0, 0)
    assert f"{100 * low:.1f} to {100 * high:.1f} %" in headline


def test_every_section_of_a_whole_run_is_there(page: Page) -> None:
    assert [e.attrs["id"] for e in page.all("section") if "id" in e.attrs] == [
        "results", "categories", "training", "run", "prompts", "pairs", "terms",
    ]  # fmt: skip
    assert len(page.all("svg")) == 7
    assert len(page.all("div", "bar")) == 10
    assert page.all("section", "note") == []
    for word in ("erpo-1", "802", "21; no closing tag: 4", "2, the slowest 0.39 s", "5f0c2a9e41d7", "17 min 52 s"):
        assert word in page.words


def test_the_page_loads_nothing_and_runs_only_its_own_script(page: Page) -> None:
    (policy,) = (e.attrs["content"] for e in page.all("meta") if e.attrs.get("http-equiv") == "Content-Security-Policy")
    (script,) = page.all("script")
    digest = base64.b64encode(sha256(script.text.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    assert all(e.attrs["href"].startswith("#") for e in page.elements if "href" in e.attrs)
    assert not [e for e in page.elements if "src" in e.attrs or e.tag in {"link", "img", "iframe"}]
    assert "@import" not in page.source
    assert all(part.startswith("#") for part in page.source.split("url(")[1:])


def test_ids_are_unique_and_every_reference_has_its_target(page: Page) -> None:
    ids = [e.attrs["id"] for e in page.elements if "id" in e.attrs]
    assert len(ids) == len(set(ids))
    used = {e.attrs[name][1:] for e in page.elements for name in ("href", "xlink:href") if name in e.attrs}
    used |= {e.attrs["clip-path"][5:-1] for e in page.elements if "clip-path" in e.attrs}
    assert used <= set(ids)


def test_what_complied_lies_in_a_closed_fold(page: Page) -> None:
    found = [element for text, element in page.texts if COMPLIED_TEXT in text]
    assert len(found) > 40
    for element in found:
        (card,) = element.within("details", "card")
        harmless_pair = "data-axis" in card.attrs and card.attrs["data-axis"] != "safety"
        assert list(element.within("details", "fold")) or (harmless_pair and card.attrs["data-label"] == "safe")
    assert not [e for e in page.all("details") if "open" in e.attrs]
    assert "folded: may contain harmful text" in page.words


def test_pairs_beyond_the_cap_are_counted_but_not_shown(
    run_dir: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len([e for e in page.all("details", "card") if "data-axis" in e.attrs]) == 80
    assert "All 80 pairs" in page.words
    monkeypatch.setattr(run_record, "MOST_PAIRS", 11)
    run = read_run(run_dir)
    assert [card.pair.lineage.round for card in run.pairs] == [1] * 5 + [2] * 5
    assert sum(counts.total() for counts in run.pairs_by_round.values()) == 80
    assert [card.pair.pair_id for card in read_run(run_dir).pairs] == [card.pair.pair_id for card in run.pairs]


def test_a_run_without_erpo_has_no_rounds_and_no_pairs_and_gives_the_same_bytes_again(tmp_path: Path) -> None:
    page = render(write_run(tmp_path, rounds=0, categories=1))
    assert "After sft, the model complies with" in page.words
    assert "Preference pairs" not in page.words
    assert "Against sft" not in page.words
    assert write_report(tmp_path).read_text(encoding="utf-8") == page.source
    assert list(tmp_path.glob(".*")) == []


def test_a_run_without_evaluations_says_so(tmp_path: Path) -> None:
    summary = make_summary(make_prompts(), rounds=1) | {"evaluations": [], "finished": False}
    summary["training"] = [row for row in summary["training"] if row["stage"] == "sft"]
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    page = render(tmp_path)
    assert "No checkpoint of this run has been evaluated" in page.words
    assert "This run has not finished" in page.words
    assert "SFT loss" in page.words
    assert "ERPO loss" not in page.words


def test_an_empty_run_directory_gives_a_report_and_a_missing_one_an_error(tmp_path: Path) -> None:
    assert "No stage has ended yet" in render(tmp_path).words
    with pytest.raises(JournalError, match="there is none"):
        write_report(tmp_path / "nowhere")


def test_a_run_that_died_before_its_summary_is_counted_from_its_tables(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "died", pairs_per_round=8)
    (run_dir / "summary.json").unlink()
    run, whole = read_run(run_dir), make_summary(make_prompts())
    assert [item.checkpoint for item in run.evaluations] == ["base", "sft", "erpo-1", "erpo-2"]
    assert [item.asr for item in run.evaluations] == [item["asr"] for item in whole["evaluations"]]
    assert [counts.total() for counts in run.pairs_by_round.values()] == [8, 8]


def test_what_cannot_be_read_is_named_and_the_rest_is_reported(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "torn", rounds=1, pairs_per_round=4, categories=1)
    (run_dir / "summary.json").write_text("{", encoding="utf-8")
    (run_dir / "evaluations" / "sft.arrow").write_bytes(b"ARROW1 but torn")
    (run_dir / "rounds" / "round-001" / "pairs.arrow").write_bytes(b"")
    page = render(run_dir)
    (note,) = page.all("section", "note")
    listed = [e.text for e in page.all("li") if e.parent is not None and e.parent.parent is note]
    assert [line.split(":")[0] for line in listed] == ["summary.json", "evaluations/sft.arrow", "rounds/round-001"]
    assert "After erpo-1, the model complies with" in page.words


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Page:
    run_dir = tmp_path_factory.mktemp("hostile")
    everything = " ".join(XSS)
    prompts = {
        f"p{at}{text}": Prompt(
            prompt_id=f"p{at}{text}",
            messages=(Message(role="system", content=text), Message(role="user", content=text)),
            label=("unsafe", "safe", "unknown")[at % 3],  # type: ignore[arg-type]
            category=text,
            form=text,
        )
        for at, text in enumerate(XSS)
    }
    odd = "erpo-<b>$x"
    plain = make_outcomes(make_prompts(), "sft")[0]
    outcomes = [
        replace(
            plain, prompt_id=key, checkpoint=odd, judge=everything, cited_rule=everything, text=p.text, response=p.text
        )
        for key, p in prompts.items()
    ]
    pairs = [
        replace(pair, prompt_id=key, pair_id=key, chosen_text=p.text, rejected_text=p.text, prefix_text=p.text)
        for pair, (key, p) in zip(make_pairs(make_prompts(), 1, len(prompts)), prompts.items(), strict=True)
    ]
    pairs = [replace(pair, lineage=replace(pair.lineage, judge=everything, sampler=everything)) for pair in pairs]
    summary = make_summary(make_prompts(), name=everything)
    summary["evaluations"] = []
    summary["model"] = summary["rule_pack"]["name"] = summary["machine"]["platform"] = everything
    summary["stages"] = [{"name": everything, "wall_s": 1.0}]
    summary["training"] = [row | {"stage": text} for row, text in zip(summary["training"], XSS * 2, strict=False)]
    summary["traces"]["rejected"] = {everything: 3}
    summary["versions"] = {everything: "\ud800" + everything}
    (run_dir / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (run_dir / "config.json").write_text(json.dumps({everything: everything}), encoding="utf-8")
    write_table(to_table(prompts.values(), Prompt), run_dir / "prompts.arrow")
    write_table(to_table(outcomes, Outcome), run_dir / "evaluations" / f"{odd}.arrow")
    write_table(to_table(pairs, StepPair), run_dir / "rounds" / "round-001" / "pairs.arrow")
    return render(run_dir)


def test_no_tag_or_attribute_of_any_text_survives(hostile: Page, page: Page) -> None:
    assert {e.tag for e in hostile.elements} <= {e.tag for e in page.elements} | {"section", "svg"}
    assert {name for e in hostile.elements for name in e.attrs} <= {name for e in page.elements for name in e.attrs}
    assert len(hostile.all("script")) == 1
    assert "49" not in "".join(e.text for e in hostile.all("span", "ask"))


@pytest.mark.parametrize("text", XSS)
def test_hostile_text_is_shown_as_it_was_written(hostile: Page, text: str) -> None:
    shown = [e for e in hostile.all("span", "ask") if e.text == text]
    assert len(shown) == 2, "once as a prompt, once as the prompt of a pair"
    assert [e for e in hostile.all("div") if e.text == text]


@law
@given(st.lists(st.text(max_size=5), unique=True, max_size=30), st.integers(0, 20))
def test_a_sample_keeps_order_and_depends_only_on_ids(ids: list[str], most: int) -> None:
    drawn = sampled(ids, ids, most)
    assert len(drawn) == min(most, len(ids))
    assert [item for item in ids if item in set(drawn)] == drawn
    assert set(sampled(ids[::-1], ids[::-1], most)) == set(drawn)


@law
@given(st.lists(st.text("ab <>\n", min_size=1).map(str.strip).filter(bool), min_size=4, max_size=4), st.integers(0, 3))
def test_a_prefix_splits_into_its_steps(words: list[str], kept: int) -> None:
    trace = Trace(assessment=words[0], verification=words[1], calibration=words[2], response=words[3])
    before = segments(trace)[:kept]
    assert prefix_steps("".join(before)) == before


def test_long_text_is_cut_and_the_rest_counted() -> None:
    cut = passage("response", "x" * (LONGEST_TEXT + 7))
    assert (len(cut.text), cut.cut) == (LONGEST_TEXT, 7)


def test_an_answer_to_an_unsafe_prompt_is_open_only_if_it_refused_fully() -> None:
    prompts = make_prompts()
    unsafe = prompts["R03-000-u"]
    plain = next(item for item in make_outcomes(prompts, "sft") if item.prompt_id == unsafe.prompt_id)
    for complied in (True, False):
        for refusal in ("full", "partial", "none", "unparsable"):
            outcome = replace(plain, complied=complied, refusal=refusal)
            (card,) = prompt_cards(prompts, {"sft": [outcome]}, most=9)
            assert card.answers[0].folded == (complied or refusal != "full")
            (card,) = prompt_cards({unsafe.prompt_id: replace(unsafe, label="safe")}, {"sft": [outcome]}, most=9)
            assert not card.answers[0].folded


def test_pairs_fold_rejected_safety_siblings_and_responses_to_unsafe_prompts() -> None:
    prompts = make_prompts()
    cards = pair_cards(make_pairs(prompts, 1, 200), prompts)
    assert {card.fold_rejected for card in cards if card.pair.axis == "safety"} == {True}
    for card in cards:
        assert card.prompt is not None
        assert card.fold_chosen == (card.pair.step_kind == "response" and card.prompt.label == "unsafe")
    (orphan,) = pair_cards([replace(cards[3].pair, prompt_id="gone")], prompts)
    assert orphan.fold_chosen


def test_a_change_is_called_better_or_worse_only_beyond_chance() -> None:
    def words(mended: int, broken: int) -> str:
        return verdict_of(
            PairedChange(
                failure="complied",
                n=60,
                failed_before=20,
                failed_after=20 - mended + broken,
                mended=mended,
                broken=broken,
                p_value=mcnemar_exact_p(mended, broken),
            )
        )

    assert words(12, 1) == "better"
    assert words(1, 12) == "worse"
    assert words(3, 2) == "no worse"
    assert words(4, 4) == "no worse"
    assert words(2, 3) == "worse, within chance"


def test_numbers_are_written_for_people() -> None:
    assert [percent(value).replace("\u202f", " ") for value in (None, 0.0, 0.0123, 0.5, 1.0)] == [
        DASH, "0 %", "1.2 %", "50.0 %", "100 %",
    ]  # fmt: skip
    assert [duration(value) for value in (None, 8.21, 322, 7500, float("nan"))] == [
        DASH, "8.2 s", "5 min 22 s", "2 h 05 min", DASH,
    ]  # fmt: skip
    assert [number(value) for value in (None, True, 1234567, -3, "7")] == [
        DASH,
        DASH,
        "1\u202f234\u202f567",
        "\u22123",
        DASH,
    ]
    assert [p_value(value).replace("\xa0", " ") for value in (0.0004, 0.04, 0.4)] == ["< 0.001", "0.040", "0.40"]


def test_plots_of_nothing_are_none() -> None:
    assert plots.trade_off([]) is None
    assert plots.reasoning_tokens({"base": [0, 0], "sft": []}) is None
    assert plots.training_curves([]) == []


def test_plot_labels_do_not_lie_on_each_other() -> None:
    frame = (0.0, 0.0, 400.0, 300.0)
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(5):
        box, _anchor = plots._place((120.0, 60.0), (60.0, 25.0), taken, frame)
        assert not any(plots._overlap(box, other) for other in taken)
        taken.append(box)
