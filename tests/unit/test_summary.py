"""The run in figures: counted from the journal, so that what is lost or done twice shows."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from local_run import LocalRun

from safer_ray.core.events import Dropped, Event, Judged, Published, Sealed, Stepped, Trained
from safer_ray.core.loop import LoopState, fold
from safer_ray.core.plan import Phase, PlanSizes, make_plan
from safer_ray.journal import Entry
from safer_ray.run_record import read_run
from safer_ray.summary import MemoryPeak, summarise, versions, write_summary

HEAD: dict[str, Any] = {"name": "demo", "started_at": 100.0, "bad_rows": 0, "versions": {"python": "3.11"}}
PLAN = make_plan(("evaluate", "erpo"), PlanSizes(teach=0, explore=2, evaluate=2, rounds=1))
CONTRACT = {
    "name", "model", "seed", "rule_pack", "started_at", "wall_s", "finished", "machine", "stages", "evaluations",
    "rounds", "training", "traces", "weight_updates", "dropped", "sampler", "bad_rows", "lost_prompts",
    "duplicate_prompts", "versions", "config_hash", "data_hash",
}  # fmt: skip


def judged(phase: str, item: int, **counts: int) -> Judged:
    return Judged(phase=phase, item=item, level=0, attempt=0, final=True, counts=counts)


def step(number: int, loss: float, margin: float | None = 1.0) -> Stepped:
    return Stepped(phase="erpo-1", facts={"step": number, "loss": loss, "chosen_logp": -2.0, "margin": margin})


def summary_of(*events: Event, state: LoopState | None = None, **extra: Any) -> dict[str, Any]:
    """Return the summary of events that come one second after the other, from second 101 on."""
    entries = [Entry(at=101.0 + number, event=event) for number, event in enumerate(events)]
    return summarise(HEAD, state or fold(PLAN, events), entries, extra)


EVALUATED = (judged("evaluate-base", 0), judged("evaluate-base", 1))
EXPLORED = (
    judged("explore-1", 0, rollouts=4, steps=4, unscored=1),
    judged("explore-1", 1, rollouts=8, steps=8, pairs_safety=3),
)


def test_an_item_that_never_ended_is_counted_as_lost() -> None:
    assert summary_of(*EVALUATED, Sealed(phase="evaluate-base", facts={}, wall_s=0.1))["lost_prompts"] == 0
    assert summary_of(EVALUATED[0], Sealed(phase="evaluate-base", facts={}, wall_s=0.1))["lost_prompts"] == 1


def test_items_of_a_phase_still_at_work_are_not_lost() -> None:
    summary = summary_of(EVALUATED[0])
    assert (summary["lost_prompts"], summary["finished"]) == (0, False)


def test_an_item_that_ended_twice_is_counted_as_a_duplicate() -> None:
    events = (*EVALUATED, EVALUATED[0], Dropped(phase="evaluate-base", item=1, reason="late"))
    assert summary_of(*events)["duplicate_prompts"] == 2
    assert summary_of(*events[:2])["duplicate_prompts"] == 0


def test_dropped_prompts_are_no_losses_and_keep_their_reason() -> None:
    drop = Dropped(phase="evaluate-base", item=1, reason="too long")
    summary = summary_of(EVALUATED[0], drop, Sealed(phase="evaluate-base", facts={}, wall_s=0.1))
    assert summary["lost_prompts"] == 0
    assert summary["dropped"] == [{"phase": "evaluate-base", "item": 1, "reason": "too long"}]


def test_stages_follow_each_other_without_a_gap_and_add_up_to_the_whole() -> None:
    events = (
        *EVALUATED, Sealed(phase="evaluate-base", facts={}, wall_s=0.1), *EXPLORED,
        Sealed(phase="explore-1", facts={"pairs_by_axis": {}}, wall_s=0.1), step(1, 0.5),
        Trained(phase="erpo-1", facts={}, wall_s=0.5),
    )  # fmt: skip
    summary = summary_of(*events, ready_at=100.5)
    assert [(stage["name"], stage["wall_s"]) for stage in summary["stages"]] == [
        ("start", 0.5), ("evaluate-base", 2.5), ("explore-1", 3.0), ("erpo-1", 2.0)
    ]  # fmt: skip
    assert summary["wall_s"] == 8.0
    assert "ready_at" not in summary


def test_a_round_sums_up_its_items_and_the_last_quarter_of_its_training() -> None:
    steps = [step(number, loss=float(number), margin=None if number == 8 else 1.0) for number in range(1, 9)]
    sealed = Sealed(phase="explore-1", facts={"pairs_by_axis": {"safety": 3}}, wall_s=0.1)
    base = Sealed(phase="evaluate-base", facts={}, wall_s=0.1)
    summary = summary_of(*EVALUATED, base, *EXPLORED, sealed, *steps)
    (found,) = summary["rounds"]
    assert found == {
        "round": 1, "prompts": 2, "rollouts": 12, "steps": 12, "unscored": 1, "continuations": 0, "stale": 0,
        "pairs_by_axis": {"safety": 3}, "loss": 7.5, "chosen_logp": -2.0, "margin": 1.0,
    }  # fmt: skip


def test_a_round_that_was_not_trained_on_has_no_loss() -> None:
    sealed = Sealed(phase="explore-1", facts={"pairs_by_axis": {}}, wall_s=0.1)
    base = Sealed(phase="evaluate-base", facts={}, wall_s=0.1)
    (found,) = summary_of(*EVALUATED, base, *EXPLORED, sealed)["rounds"]
    assert (found["loss"], found["margin"]) == (None, None)


def test_a_stage_that_was_begun_twice_shows_its_last_steps_only() -> None:
    summary = summary_of(step(1, 0.9), step(2, 0.8), step(1, 0.7), step(2, 0.6), step(3, 0.5))
    assert [(row["step"], row["loss"]) for row in summary["training"]] == [(1, 0.7), (2, 0.6), (3, 0.5)]
    assert {row["stage"] for row in summary["training"]} == {"erpo-1"}


def test_rejected_traces_are_counted_by_reason() -> None:
    plan = [Phase(name="teach", kind="teach", items=2)]
    counts = {"accepted": 1, "rejected: the answer is empty": 1}
    events = [
        Judged(phase="teach", item=item, level=0, attempt=0, final=True, counts=counts) for item in (0, 1)
    ]  # fmt: skip
    summary = summary_of(*events, state=fold(plan, events))
    assert summary["traces"] == {"accepted": 2, "rejected": {"the answer is empty": 2}, "filters": []}


def test_weight_updates_are_listed_in_order() -> None:
    events = [Published(phase=f"publish-{n}", version=n, checksum="c", nbytes=10 * n, wall_s=0.12345) for n in (1, 2)]
    updates = summary_of(*events)["weight_updates"]
    assert updates == [{"version": n, "seconds": 0.123, "nbytes": 10 * n} for n in (1, 2)]


def test_the_summary_of_a_whole_run_keeps_its_contract(finished_run: LocalRun) -> None:
    summary = finished_run.summary
    assert CONTRACT - set(summary) == set()
    assert (summary["finished"], summary["lost_prompts"], summary["duplicate_prompts"]) == (True, 0, 0)
    assert [row["checkpoint"] for row in summary["evaluations"]] == ["base", "sft", "erpo-1", "erpo-2"]
    assert [row["round"] for row in summary["rounds"]] == [1, 2]
    assert [row["version"] for row in summary["weight_updates"]] == [1, 2, 3]
    names = [phase.name for phase in finished_run.prep.phases]
    assert [stage["name"] for stage in summary["stages"]] == names


def test_the_report_reads_what_the_summary_writes(finished_run: LocalRun) -> None:
    record = read_run(finished_run.run_dir.root)
    assert record.unread == []
    assert record.summary == json.loads(json.dumps(finished_run.summary))
    assert [each.checkpoint for each in record.evaluations] == ["base", "sft", "erpo-1", "erpo-2"]


def test_a_figure_that_is_no_number_is_not_written_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary({"loss": 0.5, "name": "caf\u00e9"}, path)
    with pytest.raises(ValueError, match="JSON"):
        write_summary({"loss": float("nan")}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"loss": 0.5, "name": "caf\u00e9"}
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]


def test_versions_name_what_decides_the_results() -> None:
    assert {"python", "pyarrow", "safer-ray"} & set(versions()) >= {"python", "pyarrow"}


def test_the_memory_of_a_run_shorter_than_one_look_is_still_measured() -> None:
    before = threading.active_count()
    peak = MemoryPeak(every_s=3600.0)
    peak.close()
    assert peak.gib > 0.001
    assert threading.active_count() == before


def test_a_clock_that_is_set_back_gives_no_negative_time() -> None:
    events = [
        Entry(at=103.0, event=Trained(phase="a", facts={}, wall_s=1.0)),
        Entry(at=50.0, event=Trained(phase="b", facts={}, wall_s=1.0)),
        Entry(at=52.0, event=Trained(phase="c", facts={}, wall_s=1.0)),
    ]
    summary = summarise(HEAD, fold(PLAN, ()), events, {})
    assert [(stage["name"], stage["wall_s"]) for stage in summary["stages"]] == [("a", 3.0), ("b", 0.0), ("c", 2.0)]
    assert summary["wall_s"] == 5.0
