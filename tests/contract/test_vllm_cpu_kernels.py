"""What a sampler's engine computes on CPU with our kernels is what vLLM computes without them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import logprobs_under, make_tiny_model
from transformers import AutoModelForCausalLM
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

from safer_ray.backends import vllm_cpu_kernels, vllm_sampler
from safer_ray.backends.vllm_cpu_kernels import keep_likely
from safer_ray.backends.vllm_sampler import VllmSamplerSpec
from safer_ray.backends.vllm_weight_engine import _same_bytes
from safer_ray.backends.weights import gather_state, write_weights
from safer_ray.records import Message, SampleRequest

torch.set_num_threads(1)
VOCAB = 1000


def random_logits(seed: int, sharpness: list[float]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(sharpness), VOCAB, generator=generator) * torch.tensor(sharpness)[:, None]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sharpness=st.lists(st.sampled_from([0.0, 0.5, 3.0, 30.0]), min_size=6, max_size=6),
    shares=st.lists(st.sampled_from([0.01, 0.5, 0.95, 1.0]), min_size=6, max_size=6),
)
def test_top_p_keeps_what_sorting_the_whole_vocabulary_keeps(
    seed: int, sharpness: list[float], shares: list[float]
) -> None:
    logits, top_p = random_logits(seed, sharpness), torch.tensor(shares)
    by_sorting = apply_top_k_top_p_pytorch(logits.clone(), None, top_p)
    kept = keep_likely(logits.clone(), top_p)
    # A token at the very edge may fall on either side: sums of a thousand probabilities differ in their last bits.
    differing = (kept != by_sorting).sum(dim=-1)
    # Which of the equally likely are kept is chance, and with 1 vLLM drops those whose probability is 0 in fp32.
    comparable = torch.tensor([each > 0 for each in sharpness]) & (top_p < 1)
    assert bool((differing[comparable] <= 1).all())
    assert bool((kept[top_p == 1] == logits[top_p == 1]).all())
    assert bool((kept[kept > -torch.inf] == logits[kept > -torch.inf]).all())
    assert bool((kept > -torch.inf).any(dim=-1).all())


def test_equally_likely_tokens_are_sorted_only_where_the_set_is_larger_than_what_was_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows_sorted = []

    def counted(logits: torch.Tensor, k: Any, p: torch.Tensor) -> torch.Tensor:
        rows_sorted.append(len(logits))
        return apply_top_k_top_p_pytorch(logits, k, p)

    monkeypatch.setattr(vllm_cpu_kernels, "apply_top_k_top_p", counted)
    logits = random_logits(0, [30.0, 0.01, 30.0, 0.01])
    kept = keep_likely(logits, torch.tensor([0.95, 0.95, 0.95, 0.1]))
    assert rows_sorted == [1]  # the flat row; of the other one a tenth is enough
    assert [int(row) for row in (kept > -torch.inf).sum(dim=-1)][1] > vllm_cpu_kernels._LIKELY


def test_only_the_sampled_tokens_log_prob_is_gathered_without_a_rank() -> None:
    def general(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> str:
        return "vllm's own"

    gather = vllm_cpu_kernels._gathering(general)
    logprobs, ids = random_logits(0, [1.0, 1.0]).log_softmax(-1), torch.tensor([7, 900])
    found = gather(logprobs, 0, ids)
    assert found.logprobs[:, 0].tolist() == [logprobs[0, 7], logprobs[1, 900]]
    assert found.logprob_token_ids.tolist() == [[7], [900]]
    assert gather(logprobs, 3, ids) == "vllm's own"


@pytest.mark.parametrize(
    ("dtype", "wanted", "pays", "on_cpu", "used"),
    [
        ("bfloat16", True, True, True, "float32"),
        ("bfloat16", True, False, True, "bfloat16"),
        ("bfloat16", True, True, False, "bfloat16"),
        ("bfloat16", False, True, True, "bfloat16"),
        ("float32", True, False, True, "float32"),
    ],
)
def test_an_engine_computes_in_fp32_only_on_a_cpu_that_is_faster_so(
    dtype: str, wanted: bool, pays: bool, on_cpu: bool, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safer_ray.backends.wide_products.fp32_pays", lambda: pays)
    spec = VllmSamplerSpec(model="m", dtype=dtype, fp32_where_faster=wanted)
    assert vllm_sampler._dtype(spec, on_cpu=on_cpu) == used


def test_an_engine_in_fp32_takes_bf16_weights_and_is_exact_with_them(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = VllmSamplerSpec(model=str(tiny_model), max_model_len=256, kv_cache_gib=0.125, threads=1, dtype="float32")
    with caplog.at_level("INFO"):
        sampler = spec.build()
    # Its kernels are in use: two norms in each of two layers and one at the end; its embedding is a table.
    assert "cpu kernels {'norms': 5, 'embeddings': 1, 'samplers': 1}" in caplog.text
    narrow = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path / "other", seed=1)).bfloat16().eval()
    sampler.load_weights(write_weights(gather_state(narrow, zero_stage=0), 1, str(tmp_path)))
    message = Message(role="user", content="How do I bake bread?")
    request = SampleRequest(request_id="r", prompt_id="p", messages=(message,), n=3, mode="step")
    for rollout in sampler.sample([request]):
        assert rollout.logprobs == pytest.approx(logprobs_under(narrow.float(), rollout), abs=1e-3)
    sampler.close()


@pytest.mark.parametrize("shape", [(3, 576), (3, 5), (7,), (576,)])
@pytest.mark.parametrize("skipped", [0, 1])
def test_weights_are_compared_to_the_last_byte_whatever_their_width_and_place(
    shape: tuple[int, ...], skipped: int
) -> None:
    held = torch.arange(skipped + math.prod(shape), dtype=torch.bfloat16)[skipped:].view(shape)
    sent = held.clone()
    assert _same_bytes(held, sent)
    sent.view(torch.int16).view(-1)[-1] ^= 1
    assert not _same_bytes(held, sent)
