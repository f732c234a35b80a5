"""The optimiser: weights of two halves are updated as DeepSpeed updates whole ones; of an ended stage nothing stays."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_rank import free_port, task
from learner_tables import write_examples
from torch.multiprocessing.reductions import StorageWeakRef

from safer_ray.backends import bf16_step
from safer_ray.backends.base import StepReport
from safer_ray.backends.cpu_kernels import kernels
from safer_ray.backends.deepspeed_learner import DeepSpeedLearner, DeepSpeedLearnerSpec

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126)
NEAR = st.floats(width=32, min_value=-4.0, max_value=4.0)
DTYPES = [torch.bfloat16, torch.float32]
RATE = st.sampled_from([0.0, 0.1])


def started(spec: DeepSpeedLearnerSpec) -> DeepSpeedLearner:
    return spec.build(rank=0, world_size=1, master=f"127.0.0.1:{free_port()}")


def moments(learner: DeepSpeedLearner) -> list[Any]:
    states = learner._engine.optimizer.optimizer.state.values()
    return [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]


def views(learner: DeepSpeedLearner) -> list[Any]:
    """Return the moments of single parameters as ZeRO hands them out: parts of what the optimiser holds."""
    groups = learner._engine.optimizer.bit16_groups
    return [each for group in groups for p in group for each in p._hp_mapping.optim_fragment.values()]


@given(st.lists(FINITE, min_size=1, max_size=9))
def test_a_weight_of_two_halves_is_the_fp32_weight_bit_for_bit(values: list[float]) -> None:
    whole = torch.tensor(values, dtype=torch.float32)
    upper, rest = torch.empty(len(values), dtype=torch.bfloat16), torch.empty(len(values), dtype=torch.int16)
    bf16_step.split(whole, upper, rest)
    assert torch.equal(bf16_step.join(upper, rest).view(torch.int32), whole.view(torch.int32))
    assert float(((upper.float() - whole).abs() - (whole.to(torch.bfloat16).float() - whole).abs()).max()) <= 0.0


@given(values=st.lists(NEAR, min_size=1, max_size=9), grads=st.lists(NEAR, min_size=27, max_size=27), decay=RATE)
def test_the_kernel_is_torchs_adamw_on_the_joined_weight(values: list[float], grads: list[float], decay: float) -> None:
    lr, betas, eps, size = 1e-2, (0.9, 0.99), 1e-8, len(values)
    whole = torch.tensor(values)
    upper, rest = whole.to(torch.bfloat16), torch.zeros(size, dtype=torch.int16)
    bf16_step.split(whole, upper, rest)
    mean, square = torch.full((size,), math.nan), torch.full((size,), math.nan)  # not looked at in the first step
    want = torch.nn.Parameter(whole.clone())
    optimizer = torch.optim.AdamW([want], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    run = kernels()
    assert run is not None
    for step in range(1, 4):
        grad = torch.tensor(grads[9 * step - 9 :][:size]).to(torch.bfloat16)
        want.grad = grad.float() * 0.5
        optimizer.step()
        corrected = lr / (1.0 - betas[0] ** step), (1.0 - betas[1] ** step) ** 0.5
        new = 1.0 - betas[0], betas[1], 1.0 - betas[1]
        run(
            "adamw", upper.dtype, upper, rest, mean, square, grad, size, step > 1,
            0.5, 1.0 - lr * decay, *corrected, *new, eps,
        )  # fmt: skip
    torch.testing.assert_close(bf16_step.join(upper, rest), want.detach(), rtol=1e-6, atol=1e-6)


@given(sizes=st.lists(st.integers(0, 200_000), max_size=3), seed=st.integers(0, 9), dtype=st.sampled_from(DTYPES))
@settings(deadline=None, max_examples=20)
def test_the_norm_of_all_gradients_is_torchs(sizes: list[int], seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    want = torch.linalg.vector_norm(torch.cat([*grads, torch.zeros(1)]).double())
    assert float(bf16_step.total_norm(grads)) == pytest.approx(float(want), rel=1e-4)
    for bad in (math.inf, math.nan):
        broken = [*grads, torch.tensor([1.0, bad], dtype=dtype)]
        assert not math.isfinite(float(bf16_step.total_norm(broken)))


@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "part by part"])
def test_an_update_of_halves_is_deepspeeds_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
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

    def counted(*pairs: Any) -> Any:
        for part in parts_of(*pairs):
            parts.append(len(part))
            yield part

    parts_of = bf16_step._parts
    monkeypatch.setattr(bf16_step, "_parts", counted)
    monkeypatch.setattr(bf16_step, "_PART", 4096)
    if not compiled:
        monkeypatch.setattr(bf16_step, "kernels_for", lambda *weights: None)
    reports, weights = trained()
    if compiled:
        assert parts == []
    else:
        assert len(parts) >= 3 * len(reports)
        assert max(parts) > 1
    monkeypatch.setattr(bf16_step, "update_in_parts", lambda engine: None)
    want, own = trained()
    for figure in ("loss", "grad_norm"):
        assert [getattr(r, figure) for r in reports] == pytest.approx([getattr(r, figure) for r in want], rel=1e-3)
    for ours, theirs in zip(weights, own, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


def test_a_bf16_policy_is_held_in_two_halves_and_no_third(tiny_model: Path, tmp_path: Path) -> None:
    learner = started(DeepSpeedLearnerSpec(model=str(tiny_model), threads=1))
    try:
        learner.begin(task("sft", write_examples(tmp_path / "sft.arrow")))
        learner.step()
        assert sum(master.numel() for group in learner._engine.optimizer.fp32_groups for master in group) == 0
        for weight in learner._policy.parameters():
            whole = bf16_step.full_precision(weight)
            assert whole is not None
            assert (whole - weight.float()).abs().max() <= weight.float().abs().max() / 256
        assert any(bool(weight.fp32_rest.any()) for weight in learner._policy.parameters())
    finally:
        learner.close()


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
