"""The fake learner reads real tables, counts real steps, and learns alike in every run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.backends.base import (
    Learner,
    LearnerSpec,
    OptimSettings,
    TeachTask,
    TrainTask,
)
from safer_ray.backends.fake import (
    FakeLearnerSpec,
    FakeSamplerSpec,
    FakeTeacherSpec,
    toy_prompts,
)
from safer_ray.errors import DataError, LearnerError
from safer_ray.records import (
    Lineage,
    StepPair,
    TraceExample,
)
from safer_ray.tables import to_table, write_table

LAW = settings(deadline=None, max_examples=20)


def traces_at(path: Path, n: int) -> str:
    examples = FakeTeacherSpec(rejected_share=0.0).build().teach([TeachTask(prompt=p) for p in toy_prompts(n)]).examples
    write_table(to_table(examples, TraceExample), path)
    return str(path)


def pairs_at(path: Path, n: int) -> str:
    lineage = Lineage(
        judge="j@1", rule_pack_hash="h", sampler="s", temperature=1.0, top_p=1.0, reference="fixed", round=1
    )
    pairs = [
        StepPair(
            pair_id=str(i),
            prompt_id="p",
            step_index=0,
            step_kind="assessment",
            axis="safety",
            prompt_ids=(1,),
            prefix_ids=(),
            chosen_ids=(2,),
            rejected_ids=(3,),
            chosen_text="a",
            rejected_text="b",
            margin=0.5,
            policy_version=0,
            lineage=lineage,
        )
        for i in range(n)
    ]
    write_table(to_table(pairs, StepPair), path)
    return str(path)


def sft(path: str, **optim: object) -> TrainTask:
    return TrainTask(stage="sft", kind="sft", data_path=path, optim=OptimSettings(lr=1e-4, **optim))  # type: ignore[arg-type]


def build(spec: LearnerSpec, rank: int = 0) -> Learner:
    return spec.build(rank=rank, world_size=2, master="127.0.0.1:1")


@LAW
@given(n=st.integers(1, 20), batch=st.integers(1, 8), epochs=st.integers(1, 3))
def test_a_stage_has_rows_over_batch_steps_per_epoch(
    tmp_path_factory: pytest.TempPathFactory, n: int, batch: int, epochs: int
) -> None:
    learner = build(FakeLearnerSpec(batch_size=batch))
    path = traces_at(tmp_path_factory.mktemp("t") / "sft.arrow", n)
    assert learner.begin(sft(path, epochs=epochs)) == math.ceil(n / batch) * epochs


def test_the_loss_falls_alike_on_every_rank_and_the_stage_ends(tmp_path: Path) -> None:
    path = pairs_at(tmp_path / "pairs.arrow", 40)
    task = TrainTask(stage="erpo-1", kind="erpo", data_path=path, optim=OptimSettings(lr=1e-6))
    runs = []
    for rank in (0, 1):
        learner = build(FakeLearnerSpec(), rank)
        runs.append([learner.step() for _ in range(learner.begin(task))])
        with pytest.raises(LearnerError, match="no step is left"):
            learner.step()
    assert [replace(r, seconds=0.0) for r in runs[0]] == [replace(r, seconds=0.0) for r in runs[1]]
    losses = [report.loss for report in runs[0]]
    assert all(a > b for a, b in pairwise(losses))
    assert losses[0] < math.log(2.0)
    assert [report.step for report in runs[0]] == [1, 2, 3, 4, 5]
    assert sum(report.tokens for report in runs[0]) == 40 * 3


def test_a_nan_stops_the_learner_at_the_step_asked_for(tmp_path: Path) -> None:
    learner = build(FakeLearnerSpec(nan_at_step=2))
    learner.begin(sft(traces_at(tmp_path / "sft.arrow", 24)))
    assert math.isnan(learner.step().margin)
    with pytest.raises(LearnerError, match="nan at step 2"):
        learner.step()


def test_a_table_of_another_kind_or_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pairs/1"):
        build(FakeLearnerSpec()).begin(sft(pairs_at(tmp_path / "pairs.arrow", 1)))
    with pytest.raises(LearnerError, match="no rows"):
        build(FakeLearnerSpec()).begin(sft(traces_at(tmp_path / "sft.arrow", 0)))


def test_only_rank_0_publishes_and_saves_what_samplers_accept(tmp_path: Path) -> None:
    from safetensors import safe_open

    first, second = build(FakeLearnerSpec()), build(FakeLearnerSpec(), 1)
    ref = first.publish(4)
    assert second.publish(4) is None
    assert ref is not None
    assert FakeSamplerSpec().build().load_weights(ref).version == 4
    second.save(str(tmp_path / "ckpt"))
    assert not (tmp_path / "ckpt").exists()
    for _ in range(2):
        first.save(str(tmp_path / "ckpt"))
    assert json.loads((tmp_path / "ckpt" / "config.json").read_text())["model_type"] == "safer_ray_fake"
    with safe_open(tmp_path / "ckpt" / "model.safetensors", framework="numpy") as weights:
        assert list(weights.keys()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]
