"""Whole runs on the fakes: nothing is lost, nothing happens twice, and the seed alone decides what comes out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_run import BANNED, LIMITS, LocalRun, StoppedRun, carry_out, local_world, prepared

from safer_ray.backends.base import OptimSettings, TrainTask
from safer_ray.backends.fake import FakeJudgeSpec, FakeSampler, FakeSamplerSpec
from safer_ray.backends.grader import RoundFacts
from safer_ray.backends.world import Scene, World
from safer_ray.core.curation import Curation
from safer_ray.core.events import Action, Dropped, Event, Judged, Lost, Sealed, Stepped, Train, is_durable, to_json
from safer_ray.core.items import Breadth, ItemBook
from safer_ray.core.loop import LoopState
from safer_ray.core.policies import synchronous
from safer_ray.driver import Pace, drive
from safer_ray.errors import ClusterError, LearnerError, SamplerError
from safer_ray.journal import JOURNAL, Journal, read_journal
from safer_ray.records import Outcome, Rollout, SampleRequest, StepPair, TraceExample, Verdict
from safer_ray.rundir import RunDir
from safer_ray.tables import file_digest, from_table, read_table, to_table, write_table

RESULTS = (
    "traces/sft.arrow", "rounds/round-001/pairs.arrow", "rounds/round-001/rollouts.arrow",
    "rounds/round-001/verdicts.arrow", "rounds/round-002/pairs.arrow", "rounds/round-002/rollouts.arrow",
    "rounds/round-002/verdicts.arrow", "evaluations/base.arrow", "evaluations/sft.arrow",
    "evaluations/erpo-1.arrow", "evaluations/erpo-2.arrow",
)  # fmt: skip
LEDGER = ("lost_prompts", "duplicate_prompts", "dropped", "evaluations", "rounds", "traces", "finished")


def results(run: LocalRun) -> dict[str, bytes]:
    return {name: (run.run_dir.root / name).read_bytes() for name in RESULTS}


def ledger(run: LocalRun) -> dict[str, Any]:
    steps = [{**step, "seconds": 0} for step in run.summary["training"]]
    done = {progress.phase.name: list(progress.done) for progress in run.state.phases}
    found = {**{name: run.summary[name] for name in LEDGER}, "training": steps, "done": done}
    return dict(plain(found))


def plain(values: Any) -> Any:
    """Return values as they come back from a JSON file: tuples are lists."""
    return json.loads(json.dumps(values))


def test_a_whole_run_leaves_every_file_and_an_even_ledger(finished_run: LocalRun) -> None:
    run = finished_run
    assert run.state.current is None
    assert (run.summary["lost_prompts"], run.summary["duplicate_prompts"], run.summary["dropped"]) == (0, 0, [])
    kinds: dict[str, type] = {"sft": TraceExample, "pairs": StepPair, "rollouts": Rollout}
    kinds |= {"verdicts": Verdict}
    for name in RESULTS:
        path = run.run_dir.root / name
        kind = Outcome if path.parent.name == "evaluations" else kinds[path.stem]
        assert from_table(read_table(path), kind)
    for checkpoint in ("sft", "erpo-1", "erpo-2"):
        assert (run.run_dir.checkpoint(checkpoint) / "model.safetensors").is_file()
    assert [path for path in (run.run_dir.root / "shards").rglob("*") if path.is_file()] == []


def test_every_prompt_of_a_phase_ends_once(finished_run: LocalRun) -> None:
    ends = Counter((e.event.phase, e.event.item) for e in finished_run.entries if isinstance(e.event, Judged))
    expected = {(p.name, item) for p in finished_run.prep.phases if p.gathers for item in range(p.items)}
    assert ends == dict.fromkeys(expected, 1)
    for checkpoint in ("base", "sft", "erpo-1", "erpo-2"):
        outcomes = from_table(read_table(finished_run.run_dir.evaluation(checkpoint)), Outcome)
        asked = finished_run.prep.by_phase[f"evaluate-{checkpoint}"]
        assert [outcome.prompt_id for outcome in outcomes] == [prompt.prompt_id for prompt in asked]


def test_pairs_come_from_the_newest_policy_and_hang_together(finished_run: LocalRun) -> None:
    for number in (1, 2):
        pairs = from_table(read_table(finished_run.run_dir.round(number) / "pairs.arrow"), StepPair)
        rollouts = from_table(read_table(finished_run.run_dir.round(number) / "rollouts.arrow"), Rollout)
        sampled = {(r.prompt_id, r.prefix_ids, r.completion_ids) for r in rollouts}
        assert {pair.policy_version for pair in pairs} == {number}
        assert {pair.lineage.round for pair in pairs} == {number}
        for pair in pairs:
            assert {(pair.prompt_id, pair.prefix_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids)} <= sampled
        assert {pair.step_index for pair in pairs} == {0, 1, 2, 3}


def test_two_runs_with_one_seed_write_the_same_bytes_however_much_is_in_flight(
    finished_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_run.LIMITS", replace(LIMITS, max_in_flight=1))
    assert results(carry_out(finished_run.prep, tmp_path / "run")) == results(finished_run)


def test_another_seed_gives_other_samples(finished_run: LocalRun, tmp_path: Path) -> None:
    other = carry_out(prepared(tmp_path, "stages=[evaluate]", seed=1), tmp_path / "run")
    texts = [
        {outcome.text for outcome in from_table(read_table(run.run_dir.evaluation("base")), Outcome)}
        for run in (other, finished_run)
    ]
    assert not texts[0] & texts[1]


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.999])
def test_a_run_stopped_anywhere_and_resumed_ends_like_one_that_was_not(
    finished_run: LocalRun, tmp_path: Path, share: float
) -> None:
    stop_after = 1 + int(share * (finished_run.accepted - 1))
    with pytest.raises(StoppedRun):
        carry_out(finished_run.prep, tmp_path / "run", stop_after=stop_after)
    resumed = carry_out(finished_run.prep, tmp_path / "run")
    assert results(resumed) == results(finished_run)
    assert ledger(resumed) == ledger(finished_run)


def test_a_stage_stopped_between_its_steps_is_trained_anew_and_counted_once(
    finished_run: LocalRun, tmp_path: Path
) -> None:
    durable = [entry.event for entry in finished_run.entries]
    second_step = [at for at, event in enumerate(durable) if isinstance(event, Stepped) and event.phase == "erpo-1"][1]

    class StopsThere(Passes):
        heard = 0

        def next_event(self, timeout_s: float) -> Event | None:
            event = self.world.next_event(timeout_s)
            self.heard += event is not None and is_durable(event)
            if self.heard == second_step + 2:
                raise StoppedRun
            return event

    prep = finished_run.prep
    with pytest.raises(StoppedRun):
        carry_out(prep, tmp_path / "run", StopsThere(local_world(prep, RunDir(tmp_path / "run"))))
    resumed = carry_out(finished_run.prep, tmp_path / "run")
    steps = [
        e.event.facts["step"] for e in resumed.entries if isinstance(e.event, Stepped) and e.event.phase == "erpo-1"
    ]
    assert steps[:4] == [1, 2, 1, 2]
    assert ledger(resumed) == ledger(finished_run)


class Passes:
    """A world that passes everything on."""

    def __init__(self, world: World) -> None:
        self.world = world

    def submit(self, action: Action) -> None:
        self.world.submit(action)

    def next_event(self, timeout_s: float) -> Event | None:
        return self.world.next_event(timeout_s)

    def facts(self) -> dict[str, Any]:
        return self.world.facts()

    def close(self) -> None:
        self.world.close()


class DiesAfterSealing(Passes):
    """Seals ``phase`` and dies before anybody hears of it."""

    phase = ""

    def next_event(self, timeout_s: float) -> Event | None:
        event = self.world.next_event(timeout_s)
        if isinstance(event, Sealed) and event.phase == self.phase:
            raise StoppedRun
        return event


@pytest.mark.parametrize("phase", ["evaluate-base", "explore-2"])
def test_a_driver_that_dies_after_sealing_and_before_noting_it_loses_nothing(
    finished_run: LocalRun, tmp_path: Path, phase: str
) -> None:
    prep = finished_run.prep
    world = DiesAfterSealing(local_world(prep, RunDir(tmp_path / "run")))
    world.phase = phase
    with pytest.raises(StoppedRun):
        carry_out(prep, tmp_path / "run", world)
    resumed = carry_out(finished_run.prep, tmp_path / "run")
    assert results(resumed) == results(finished_run)
    assert ledger(resumed) == ledger(finished_run)


class SaysEverythingTwice(Passes):
    """Delivers every event a second time."""

    said: Event | None = None

    def next_event(self, timeout_s: float) -> Event | None:
        if self.said is not None:
            again, self.said = self.said, None
            return again
        self.said = self.world.next_event(timeout_s)
        return self.said


def test_an_event_delivered_twice_is_counted_and_journalled_once(finished_run: LocalRun, tmp_path: Path) -> None:
    prep = finished_run.prep
    run = carry_out(prep, tmp_path / "run", SaysEverythingTwice(local_world(prep, RunDir(tmp_path / "run"))))
    assert run.state.ignored > 0
    assert run.summary["duplicate_prompts"] == 0
    ends = [e.event for e in run.entries if isinstance(e.event, Judged)]
    assert ends == [e.event for e in finished_run.entries if isinstance(e.event, Judged)]
    assert results(run) == results(finished_run)


class SpyingSampler(FakeSampler):
    """Notes what it is asked."""

    def __init__(self, spec: FakeSamplerSpec) -> None:
        super().__init__(spec)
        self.asked: list[SampleRequest] = []

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        self.asked += requests
        return super().sample(requests)


def test_the_banned_category_is_taught_and_never_sampled_and_no_unsafe_prompt_is_answered_plainly(
    tmp_path: Path,
) -> None:
    sampler, prep = SpyingSampler(FakeSamplerSpec()), prepared(tmp_path, "sft.max_prompts=0")
    run = carry_out(prep, tmp_path / "run", sampler=sampler)
    category = {prompt.prompt_id: prompt.category for prompt in prep.prompts.prompts}
    banned = {prompt.text for prompt in prep.prompts.prompts if prompt.category == BANNED}
    assert len(banned) == 6
    assert BANNED not in {category[request.prompt_id] for request in sampler.asked}
    assert not banned & {message.content for request in sampler.asked for message in request.messages}
    assert {category[request.prompt_id] for request in sampler.asked} == {"R00", "R01", "R09"}
    label = {prompt.prompt_id: prompt.label for prompt in prep.prompts.prompts}
    assert {label[request.prompt_id] for request in sampler.asked if request.mode == "answer"} == {"safe"}
    traces = from_table(read_table(run.run_dir.traces), TraceExample)
    assert sum(category[trace.prompt_id] == BANNED for trace in traces) == 4


@pytest.mark.parametrize(
    ("sampler", "judge"),
    [(FakeSamplerSpec(fail_every=29), FakeJudgeSpec()), (FakeSamplerSpec(), FakeJudgeSpec(fail_every=29))],
    ids=["sampler", "judge"],
)
def test_calls_that_fail_are_tried_again_and_change_no_result(
    finished_run: LocalRun, tmp_path: Path, sampler: FakeSamplerSpec, judge: FakeJudgeSpec
) -> None:
    prep = finished_run.prep
    world = local_world(prep, RunDir(tmp_path / "run"), sampler=sampler.build(), judge=judge)
    run = carry_out(prep, tmp_path / "run", world)
    assert any(isinstance(entry.event, Lost) for entry in run.entries)
    assert results(run) == results(finished_run)
    assert (run.summary["lost_prompts"], run.summary["duplicate_prompts"], run.summary["dropped"]) == (0, 0, [])


class RefusesOne(FakeSampler):
    """Cannot sample one prompt."""

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        if any(request.prompt_id == "R09-003-u" for request in requests):
            raise SamplerError("sampler fake: request R09-003-u is too long; shorten the prompt")
        return super().sample(requests)


def test_a_prompt_that_cannot_be_sampled_is_dropped_with_the_reason_and_the_run_goes_on(
    finished_run: LocalRun, tmp_path: Path
) -> None:
    run = carry_out(finished_run.prep, tmp_path / "run", sampler=RefusesOne(FakeSamplerSpec()))
    phases = ["evaluate-base", "evaluate-sft", "evaluate-erpo-1", "evaluate-erpo-2"]
    assert [row["phase"] for row in run.summary["dropped"]] == phases
    assert {row["reason"] for row in run.summary["dropped"]} == {
        "sampler fake: request R09-003-u is too long; shorten the prompt"
    }
    assert (run.summary["lost_prompts"], run.summary["duplicate_prompts"]) == (0, 0)
    assert len([e for e in run.entries if isinstance(e.event, Lost)]) == LIMITS.max_tries * len(phases)
    assert len([e for e in run.entries if isinstance(e.event, Dropped)]) == len(phases)
    (evaluated, *_) = run.summary["evaluations"]
    asked = run.prep.by_phase["evaluate-base"]
    assert evaluated["n_unsafe"] + evaluated["n_safe"] == len(asked) - 1


class BreaksInTraining(Passes):
    """Its learner fails at once."""

    def submit(self, action: Action) -> None:
        if isinstance(action, Train):
            raise LearnerError("learner rank 0: loss is nan at step 1; lower the lr")
        super().submit(action)


def test_a_failed_learner_stops_the_run_and_the_journal_keeps_what_came_before(
    finished_run: LocalRun, tmp_path: Path
) -> None:
    prep, place = finished_run.prep, RunDir(tmp_path / "run")
    with pytest.raises(LearnerError, match="loss is nan"):
        carry_out(prep, place.root, BreaksInTraining(local_world(prep, place)))
    _, entries, _ = read_journal(place.root / JOURNAL)
    assert [e.event.phase for e in entries if isinstance(e.event, Sealed)] == ["evaluate-base", "teach"]
    last = entries[-1].event
    assert isinstance(last, Sealed)
    assert last.phase == "teach"
    assert last.facts == {"traces": 8, "files": {"traces/sft.arrow": file_digest(place.traces)}}


class Silent(Passes):
    """Takes everything and says nothing."""

    def submit(self, action: Action) -> None:
        pass

    def next_event(self, timeout_s: float) -> Event | None:
        return None


def test_silence_ends_in_a_sentence_that_names_the_phase(finished_run: LocalRun, tmp_path: Path) -> None:
    prep, place = finished_run.prep, RunDir(tmp_path / "run")
    journal = Journal.create(place.root, prep.head)
    pace = Pace(policy=synchronous, limits=LIMITS, silence_s=0.0)
    sentence = r"no worker answered for 0 s \(evaluate-base waits with 4 prompts for a sampler\); .* resume the run"
    with pytest.raises(ClusterError, match=sentence):
        drive(LoopState.of(prep.phases), Silent(local_world(prep, place)), journal, pace=pace, observe=lambda *_: None)
    journal.close()


def test_the_journal_holds_what_was_observed_and_nothing_that_need_not_be_kept(finished_run: LocalRun) -> None:
    head, entries, _ = read_journal(finished_run.run_dir.root / JOURNAL)
    assert head == finished_run.prep.head
    assert [(entry.at, to_json(entry.event)) for entry in entries] == [
        (entry.at, plain(to_json(entry.event))) for entry in finished_run.entries
    ]
    assert all(is_durable(entry.event) for entry in entries)
    assert finished_run.accepted > len(entries)


@pytest.mark.parametrize(("policy", "lag"), [("one_round_ahead", 1), ("fully_async", 2)])
def test_a_run_that_explores_ahead_loses_nothing_and_is_never_staler_than_its_lag(
    tmp_path: Path, policy: str, lag: int
) -> None:
    prep = prepared(tmp_path, f"loop.policy={policy}", "erpo.rounds=3")
    with pytest.raises(StoppedRun):
        carry_out(prep, tmp_path / "run", stop_after=150)
    run = carry_out(prep, tmp_path / "run")
    assert (run.summary["lost_prompts"], run.summary["duplicate_prompts"], run.summary["dropped"]) == (0, 0, [])
    ages = set[int]()
    for number in (1, 2, 3):
        pairs = from_table(read_table(run.run_dir.round(number) / "pairs.arrow"), StepPair)
        ages |= {number - pair.policy_version for pair in pairs}
        asked = {prompt.prompt_id for prompt in prep.by_phase[f"explore-{number}"]}
        rollouts = from_table(read_table(run.run_dir.round(number) / "rollouts.arrow"), Rollout)
        first = Counter(rollout.prompt_id for rollout in rollouts if rollout.first_step == 0)
        assert first == dict.fromkeys(asked, prep.config.erpo.siblings)
    assert max(ages) > 0, "no round was explored ahead"
    assert ages <= set(range(lag + 1))
    for version, checkpoint in enumerate(("base", "sft", "erpo-1", "erpo-2", "erpo-3")):
        outcomes = from_table(read_table(run.run_dir.evaluation(checkpoint)), Outcome)
        assert {outcome.policy_version for outcome in outcomes} == {version}


def test_preferences_that_a_smaller_lag_made_stale_are_not_trained(finished_run: LocalRun, tmp_path: Path) -> None:
    """A run resumed with a smaller lag finds preferences on disk that were fresh enough before."""
    run_dir = RunDir(tmp_path)
    pairs = from_table(read_table(finished_run.run_dir.round(2) / "pairs.arrow"), StepPair)
    stale, fresh = [replace(pair, policy_version=1) for pair in pairs[:3]], pairs[3:]
    path = run_dir.round(2) / "pairs.arrow"
    write_table(to_table([*stale, *fresh], StepPair), path)
    phase = next(phase for phase in finished_run.prep.phases if phase.name == "erpo-2")
    book = ItemBook({"erpo-2": (phase, ())}, Breadth(siblings=2, answers=1), 0)
    task = TrainTask(stage="erpo-2", kind="erpo", data_path=str(path), optim=OptimSettings(lr=1e-5))
    scene = Scene(book, run_dir, lambda number: RoundFacts(**FACTS), lambda name: task, frozenset(), Curation())
    trained = scene.stage("erpo-2")
    assert trained is not None
    assert from_table(read_table(Path(trained.data_path)), StepPair) == fresh
    write_table(to_table(fresh, StepPair), path)
    assert scene.stage("erpo-2") == task
    write_table(to_table(stale, StepPair), path)
    assert scene.stage("erpo-2") is None


FACTS: Any = {"round": 2, "sampler": "fake", "temperature": 1.0, "top_p": 0.95, "reference": "fixed"}
