"""The CPU kernels compute what the operators they stand for compute, gradients too; without them nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.backends import cpu_kernels
from safer_ray.backends.cpu_kernels import kernels, kernels_for
from safer_ray.backends.fused_layers import FusedGate, FusedNorm
from safer_ray.backends.logprobs import TargetLogprob

torch.set_num_threads(1)
EPS = 1e-5
SIZES = {"tokens": st.integers(1, 9), "width": st.integers(1, 70), "seed": st.integers(0, 9)}
Function = Callable[..., torch.Tensor]


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)


def random(seed: int, *shapes: tuple[int, ...], scale: float = 3.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator) * scale).requires_grad_() for shape in shapes]


def assert_same(have: Function, want: Function, inputs: list[torch.Tensor], *, tolerance: float = 1e-4) -> None:
    out_have, out_want = have(*inputs), want(*inputs)
    assert torch.allclose(out_have.float(), out_want.float(), rtol=tolerance, atol=tolerance)
    upstream = torch.linspace(-1.0, 2.0, out_want.numel()).view_as(out_want).to(out_want.dtype)
    for a, b in zip(
        torch.autograd.grad(out_have, inputs, upstream), torch.autograd.grad(out_want, inputs, upstream), strict=True
    ):
        assert float((a - b).float().norm()) <= tolerance * max(1.0, float(b.float().norm()))


def test_this_machine_has_a_compiler_so_the_kernels_are_what_is_tested() -> None:
    assert kernels() is not None


@settings(max_examples=20, deadline=None)
@given(**SIZES)
def test_the_norm_is_that_of_transformers(tokens: int, width: int, seed: int) -> None:
    assert_same(lambda x, w: FusedNorm.apply(x, w, EPS), norm, random(seed, (1, tokens, width), (width,)))


@settings(max_examples=20, deadline=None)
@given(**SIZES)
def test_the_gate_is_silu_times_up(tokens: int, width: int, seed: int) -> None:
    shape = (1, tokens, width)
    assert_same(FusedGate.apply, lambda g, u: F.silu(g) * u, random(seed, shape, shape, scale=30.0))


@settings(max_examples=20, deadline=None)
@given(**SIZES)
def test_log_probs_are_those_of_log_softmax(tokens: int, width: int, seed: int) -> None:
    target = torch.arange(tokens) % width

    def want(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1).gather(1, target[:, None])[:, 0]

    inputs = random(seed, (tokens, width), scale=30.0)
    assert_same(lambda logits: TargetLogprob.apply(logits, target), want, inputs)


def test_bf16_stays_within_its_rounding() -> None:
    narrow = [each.detach().bfloat16().requires_grad_() for each in random(1, (1, 40, 64), (64,))]
    assert_same(lambda x, w: FusedNorm.apply(x, w, EPS), norm, narrow, tolerance=2**-6)
    gates = [each.detach().bfloat16().requires_grad_() for each in random(2, (1, 40, 64), (1, 40, 64))]
    assert_same(FusedGate.apply, lambda g, u: F.silu(g) * u, gates, tolerance=2**-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    x = torch.full((1, 2, 8), float("nan"), dtype=dtype)
    assert FusedNorm.apply(x, torch.ones(8, dtype=dtype), EPS).isnan().all()
    assert FusedGate.apply(x, torch.ones_like(x)).isnan().all()
    assert TargetLogprob.apply(x[0], torch.tensor([0, 1])).isnan().all()


def test_without_a_compiler_the_layers_compute_as_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(cpu_kernels, "kernels", cpu_kernels.kernels.__wrapped__)
    (logits,) = random(3, (3, 5))
    assert kernels_for(logits) is None
    want = logits.log_softmax(-1).gather(1, torch.tensor([[0], [1], [2]]))[:, 0]
    assert torch.allclose(TargetLogprob.apply(logits, torch.tensor([0, 1, 2])), want, atol=1e-5)
