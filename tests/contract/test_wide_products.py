"""Linear layers that multiply bf16 in fp32 compute what they computed before, with one rounding; gradients too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.backends import wide_products
from safer_ray.backends.wide_products import WideProduct, fp32_pays, widen

torch.set_num_threads(1)
ROUNDING = 2**-8
"""Half the distance of two neighbouring bf16 values, relative to them."""


def narrow(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).bfloat16().requires_grad_()


def exact(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the product and both gradients of its sum's square, in double precision and without a rounding."""
    wide, wide_weight = (each.detach().double().requires_grad_() for each in (x, weight))
    y = wide @ wide_weight.T
    dx, dweight = torch.autograd.grad(y, (wide, wide_weight), upstream(y))
    return y, dx, dweight


def upstream(y: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1.0, 2.0, y.numel()).bfloat16().view_as(y).to(y.dtype)


def assert_rounded_once(have: torch.Tensor, want: torch.Tensor) -> None:
    assert have.dtype == torch.bfloat16
    assert torch.allclose(have.double(), want, rtol=1.1 * ROUNDING, atol=1e-5)  # fp32 sums err a little themselves


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 9), width=st.integers(1, 70), out=st.integers(1, 40), chunk=st.integers(1, 999))
def test_a_product_and_its_gradients_are_rounded_once(tokens: int, width: int, out: int, chunk: int) -> None:
    x, weight = narrow(1, 1, tokens, width), narrow(2, out, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wide_products, "CHUNK", chunk)  # a weight in one piece, in several, row by row
        y = WideProduct.apply(x, weight)
        dx, dweight = torch.autograd.grad(y, (x, weight), upstream(y))
    for have, want in zip((y, dx, dweight), exact(x, weight), strict=True):
        assert_rounded_once(have, want)


def test_what_one_product_left_does_not_reach_the_next() -> None:
    WideProduct.apply(torch.full((8, 64), float("nan")).bfloat16(), narrow(1, 32, 64))
    x, weight = narrow(3, 4, 16), narrow(4, 8, 16)
    y = WideProduct.apply(x, weight)
    y.backward(upstream(y))
    for have, want in zip((y, x.grad, weight.grad), exact(x, weight), strict=True):
        assert have is not None
        assert_rounded_once(have, want)


def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight = narrow(1, 4, 16), narrow(2, 8, 16).detach()
    y = WideProduct.apply(x, weight)
    y.backward(upstream(y))
    assert weight.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_multiplies_in_fp32_only_where_it_is_bf16_and_the_cpu_faster(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bias: bool
) -> None:
    layer = torch.nn.Linear(16, 8, bias=bias, dtype=dtype)
    x = narrow(1, 1, 4, 16).to(dtype)
    plain = layer(x)
    widen(torch.nn.Sequential(layer))
    made: list[str] = []
    for pays in (True, False):
        monkeypatch.setattr(wide_products, "fp32_pays", lambda pays=pays: pays)
        y = layer(x)
        assert torch.allclose(y.float(), plain.float(), rtol=4 * ROUNDING, atol=1e-2)
        inner = y.grad_fn.next_functions[0][0] if bias and "Add" in type(y.grad_fn).__name__ else y.grad_fn
        made.append(type(inner).__name__)
    assert ["WideProduct" in each for each in made] == [dtype == torch.bfloat16, False]


@pytest.mark.parametrize(("slower", "pays"), [(torch.bfloat16, True), (torch.float32, False), (None, False)])
def test_fp32_pays_where_the_same_product_takes_longer_in_bf16(
    monkeypatch: pytest.MonkeyPatch, slower: torch.dtype | None, pays: bool
) -> None:
    clock = [0.0]

    def product(left: torch.Tensor, _right: torch.Tensor) -> None:
        clock[0] += 2.0 if left.dtype == slower else 1.0

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(wide_products.time, "perf_counter", lambda: clock[0])
    assert fp32_pays.__wrapped__() is pays
