"""The optimiser: what it does in parts is what it does at once, and of an ended stage it keeps nothing."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_rank import free_port, task
from learner_tables import write_examples
from torch.multiprocessing.reductions import StorageWeakRef

from safer_ray.backends import bf16_step
from safer_ray.backends.base import StepReport
from safer_ray.backends.deepspeed_learner import DeepSpeedLearner, DeepSpeedLearnerSpec


def started(spec: DeepSpeedLearnerSpec) -> DeepSpeedLearner:
    return spec.build(rank=0, world_size=1, master=f"127.0.0.1:{free_port()}")


def moments(learner: DeepSpeedLearner) -> list[Any]:
    states = learner._engine.optimizer.optimizer.state.values()
    return [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]


def views(learner: DeepSpeedLearner) -> list[Any]:
    """Return the moments of single parameters as ZeRO hands them out: parts of what the optimiser holds."""
    groups = learner._engine.optimizer.bit16_groups
    return [each for group in groups for p in group for each in p._hp_mapping.optim_fragment.values()]


def test_an_update_part_by_part_is_deepspeeds_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = task("sft", write_examples(tmp_path / "sft.arrow"), epochs=2)

    def trained() -> tuple[list[StepReport], list[torch.Tensor]]:
        learner = started(DeepSpeedLearnerSpec(model=str(tiny_model), threads=1))
        try:
            reports = [learner.step() for _ in range(learner.begin(stage))]
            return reports, [weight.detach().clone() for weight in learner._policy.parameters()]
        finally:
            learner.close()

    parts: list[int] = []

    def counted(*groups: Any) -> Any:
        for part in parts_of(*groups):
            parts.append(len(part))
            yield part

    parts_of = bf16_step._parts
    monkeypatch.setattr(bf16_step, "_parts", counted)
    monkeypatch.setattr(bf16_step, "_PART", 4096)
    reports, weights = trained()
    assert len(parts) >= 3 * len(reports)
    assert max(parts) > 1
    monkeypatch.setattr(bf16_step, "update_in_parts", lambda engine: None)
    want, own = trained()
    for figure in ("loss", "grad_norm"):
        assert [getattr(r, figure) for r in reports] == pytest.approx([getattr(r, figure) for r in want], rel=1e-3)
    for ours, theirs in zip(weights, own, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("zero_stage", "dtype"), [(1, "bf16"), (2, "fp32")])
def test_the_moments_of_an_ended_stage_are_freed_and_the_next_stage_has_its_own(
    tiny_model: Path, tmp_path: Path, zero_stage: Any, dtype: Any
) -> None:
    stage = task("sft", write_examples(tmp_path / "sft.arrow"))
    learner = started(DeepSpeedLearnerSpec(model=str(tiny_model), zero_stage=zero_stage, dtype=dtype, threads=1))
    try:
        learner.begin(stage)
        learner.step()
        ended = [StorageWeakRef(moment.untyped_storage()) for moment in moments(learner)]
        assert ended
        assert not any(storage.expired() for storage in ended)
        learner.begin(stage)
        gc.collect()
        assert moments(learner) == []
        assert all(storage.expired() for storage in ended)
        learner.step()
        own = {moment.untyped_storage().data_ptr() for moment in moments(learner)}
        handed_out = {view.untyped_storage().data_ptr() for view in views(learner)}
        assert handed_out
        assert handed_out <= own
    finally:
        learner.close()
