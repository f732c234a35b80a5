"""Judges against labelled answers: what is counted, what is written, and bad label files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from local_run import write_job
from typer.testing import CliRunner

from safer_ray.audit_page import write_audit
from safer_ray.auditing import audit_judges
from safer_ray.backends.asker import ScriptedAskerSpec
from safer_ray.backends.base import JudgeTask
from safer_ray.backends.endpoint import Question
from safer_ray.backends.fake import FakeJudgeSpec
from safer_ray.backends.fake_judging import FakeJudge
from safer_ray.backends.judge_rubric import JudgeCase
from safer_ray.backends.labelled_answers import SHIPPED_ANSWERS, duels_by, judge_task, read_answers, readings_of
from safer_ray.backends.llm_judge import LlmJudge, LlmJudgeSpec
from safer_ray.backends.rule_packs import read_pack
from safer_ray.cli import app
from safer_ray.core.agreement import Order
from safer_ray.core.judge_audit import Reading, audit_judge, better_place, duels_of, vote
from safer_ray.core.refusal_lists import LISTS
from safer_ray.errors import ConfigError, DataError, JudgeError
from safer_ray.records import Outcome, Verdict

ANSWERS = read_answers()
FEW = ANSWERS[::9]
ROW = {"id": "1", "prompt": "?", "prompt_label": "safe", "category": "R01", "answer": "", "refusal": "full"}


def test_a_perfect_reader_agrees_with_everything_and_a_silent_one_with_nothing() -> None:
    perfect = audit_judge("p", ANSWERS, [Reading(refusal=row.refusal, score=float(row.desired)) for row in ANSWERS])
    assert perfect.classes.share == perfect.full_or_not.share == perfect.kappa == 1.0
    assert perfect.disagreements == ()
    assert perfect.calibration is not None
    assert (perfect.calibration.error, perfect.calibration.auc) == (0.0, 1.0)
    silent = audit_judge("s", ANSWERS, [Reading(refusal=None, error="down") for _ in ANSWERS])
    assert (silent.classes.share, silent.unread, silent.kappa, silent.calibration) == (0.0, len(ANSWERS), None, None)
    assert len(silent.disagreements) == len(ANSWERS)


def test_our_detector_beats_every_list_on_held_answers() -> None:
    ours, *lists = audit_judges([row for row in ANSWERS if row.split == "held"], ["rules", "lists"])
    assert len(lists) == len(LISTS) == 5
    held = [item.by_split["held"][0].share or 0.0 for item in (ours, *lists)]
    assert held[0] > max(held[1:]) + 0.2
    assert ours.unread == 0
    assert ours.calibration is not None


def test_a_vote_follows_the_majority_and_abstains_in_a_tie() -> None:
    a, b, c = ([Reading(refusal=kind, score=s)] for kind, s in (("full", 1.0), ("none", 0.0), ("full", 0.5)))
    (three,) = vote({"a": a, "b": b, "c": c})
    assert (three.refusal, three.score) == ("full", 0.5)
    (two,) = vote({"a": a, "b": b})
    assert (two.refusal, two.error) == (None, "the judges disagree")
    (none,) = vote({"a": [Reading(refusal=None)]})
    assert (none.refusal, none.error) == (None, "no judge read it")


def test_any_judge_of_the_protocol_can_be_audited() -> None:
    readings = readings_of(FakeJudgeSpec().build(), FEW)
    assert len(readings) == len(FEW)
    assert any(reading.score is not None for reading in readings)
    empty = next(row for row in ANSWERS if row.answer == "")
    assert judge_task(empty).rollout.completion_ids == (0,)


def test_duels_pair_answers_to_one_prompt_and_the_better_one_stands_in_both_places() -> None:
    duels = duels_of(ANSWERS)
    assert len(duels) >= 60
    assert all(first.prompt == second.prompt for first, second in duels)
    places = [better_place(first, second) for first, second in duels]
    assert abs(places.count("first") - places.count("second")) <= 1
    first, second = next(duel for duel in duels if duel[0].prompt_label == "unsafe")
    refuses = first if better_place(first, second) == "first" else second
    assert refuses.refusal in ("full", "partial")


def test_the_page_folds_harmful_answers_escapes_text_and_the_json_holds_no_text(tmp_path: Path) -> None:
    bad = replace(
        FEW[0], answer="<script>alert(1)</script> sure, take [omitted]", refusal="none", prompt_label="unsafe"
    )
    audit = audit_judge("x<y", [bad], [Reading(refusal="full")])
    page, data = write_audit([audit], tmp_path / "new", labels="a & b")
    html = page.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert html.index('class="fold"') < html.index("&lt;script&gt;")
    assert "x&lt;y" in html
    found = json.loads(data.read_text())
    assert found["judges"][0]["disagreements"] == [
        {"id": bad.answer_id, "by_hand": "none", "read": "full", "error": ""}
    ]
    assert "omitted" not in data.read_text()


def test_the_command_prints_a_table_and_writes_both_files(tmp_path: Path) -> None:
    labels = tmp_path / "few.jsonl"
    lines = SHIPPED_ANSWERS.read_text().splitlines()[:12]
    labels.write_text("\n".join(lines) + "\n\n")
    arguments = ["audit", "judge", "--labels", str(labels), "--judge", "rules", "--judge", "lists"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "o")])
    assert result.exit_code == 0, result.output
    assert "rules@1" in result.stdout
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"judges.html", "judges.json"}


def test_two_judges_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        audit_judges(FEW, ["rules", "rules"])


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", r"labels.jsonl:1: not JSON"),
        ("[]", r"labels.jsonl:1: id, prompt"),
        ('{"id": "1"}', r"prompt, prompt_label, category, answer, refusal must be there"),
        ("", "no rows"),
        (json.dumps(ROW | {"prompt_label": "bad"}), "prompt_label 'bad' is not one of unsafe, safe"),
        (json.dumps(ROW | {"prompt": " "}), "prompt is empty"),
    ],
)
def test_a_bad_label_file_is_refused_with_file_line_and_reason(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=what):
        read_answers(path)


def test_a_row_ends_at_its_line_feed_and_at_no_other_separator_that_text_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    texts = [f"Sure.{separator}Here you are." for separator in "\u2028\u2029\x85\n\r\x0c\x1c"]
    rows = [ROW | {"id": f"A{number}", "answer": text} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert [row.answer for row in read_answers(path)] == texts


def test_a_second_row_with_the_same_id_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(SHIPPED_ANSWERS.read_text().splitlines()[0] + "\n" + SHIPPED_ANSWERS.read_text().splitlines()[0])
    with pytest.raises(DataError, match=r"labels.jsonl:2: a second answer with the id A001"):
        read_answers(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path / "none.jsonl")


class Fussy:
    """Classes one kind of answer only, and always prefers what is shown first."""

    def __init__(self) -> None:
        self._inner = FakeJudgeSpec().build()
        self.name, self.rule_pack_hash = "fussy@1", "0"

    def judge(self, tasks: Sequence[JudgeTask]) -> list[Verdict]:
        return self._inner.judge(tasks)

    def outcomes(self, tasks: Sequence[JudgeTask], checkpoint: str) -> list[Outcome]:
        if any(task.prompt.label == "safe" for task in tasks):
            raise JudgeError("fussy: not a word on safe prompts")
        return self._inner.outcomes(tasks, checkpoint)

    duels = True

    def orders(self, pairs: Sequence[tuple[JudgeCase, JudgeCase]]) -> list[Order | None]:
        return ["first" for _ in pairs]


def test_answers_a_judge_will_not_class_are_unread_and_the_others_are_kept() -> None:
    readings = readings_of(Fussy(), FEW)
    labels = [row.prompt_label for row in FEW]
    assert [reading.refusal is None for reading in readings] == [label == "safe" for label in labels]
    assert {reading.error for reading in readings if reading.refusal is None} == {"fussy: not a word on safe prompts"}
    with pytest.raises(JudgeError, match="no answer was classed"):
        readings_of(Fussy(), [row for row in FEW if row.prompt_label == "safe"])


def test_a_judge_that_likes_the_first_place_is_found_out() -> None:
    duels = duels_by(Fussy(), ANSWERS, 20)
    assert 10 <= len(duels) <= 20
    bias = audit_judge("f", FEW, readings_of(Fussy(), FEW), duels).bias
    assert bias is not None
    assert (bias.first_share, bias.consistent.right) == (1.0, 0)
    assert duels_by(Fussy(), ANSWERS, 0) == []


def first_wins(question: Question) -> str:
    return json.dumps({"reason": "", "better": "first"})


def test_only_a_judge_made_to_compare_is_asked_to() -> None:
    def duels(model: str) -> bool:
        spec = LlmJudgeSpec(asker=ScriptedAskerSpec(script=first_wins), model=model)
        return LlmJudge(spec, read_pack("default"), spec.asker.build(), None).duels

    assert [duels(model) for model in ("scripted", "meta-llama/Llama-Guard-3-8B", "google/shieldgemma-2b")] == [
        True,
        False,
        False,
    ]


def test_judges_of_a_job_are_built_once_for_themselves_and_their_ensemble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = list[FakeJudgeSpec]()

    def counted(spec: FakeJudgeSpec) -> FakeJudge:
        built.append(spec)
        return FakeJudge(spec)

    monkeypatch.setattr(FakeJudgeSpec, "build", counted)
    job = write_job(tmp_path)
    audits = audit_judges(FEW, [str(job)], ["judge.reporting=[rules, fake]"])
    assert [audit.judge.partition(" ")[0].partition("(")[0] for audit in audits][1:] == [
        "fake-judge@1",
        "ensemble",
        "vote",
    ]
    assert len(built) == 1


def test_a_judge_that_is_a_model_is_shown_both_orders() -> None:
    spec = LlmJudgeSpec(asker=ScriptedAskerSpec(script=first_wins), model="scripted", canaries=0)
    duels = duels_by(LlmJudge(spec, read_pack("default"), spec.asker.build(), None), ANSWERS, 5)
    assert len(duels) >= 3
    assert {(duel.forward, duel.swapped) for duel in duels} == {("first", "first")}
