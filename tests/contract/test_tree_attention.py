"""A pack computes exactly what separate forwards compute: log-probs and gradients, for every model type it accepts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from safer_ray.backends.logprobs import KEPT_LOGITS, LogprobModel, TargetLogprob, to_device
from safer_ray.backends.tree_attention import MODEL_TYPES, TreeMask, _Scoring, block_attention, flex_attention, register
from safer_ray.core.packing import Pack, attention_blocks, build_trees, pack
from safer_ray.errors import ModelError
from safer_ray.records import Lineage, StepPair

VOCABULARY = 64
torch.set_num_threads(1)  # the models are so small that a second thread only waits
LINEAGE = Lineage(judge="j@1", rule_pack_hash="h", sampler="s", temperature=1.0, top_p=1.0, reference="fixed", round=0)
IDS = st.integers(0, VOCABULARY - 1)


def tiny(model_type: str, attention: str, **more: Any) -> Any:
    """A random model of a type, the same for every attention; one layer type of each the family has."""
    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.3,
        pad_token_id=0,
        **more,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.to(torch.float32).train()


def make_pair(prompt_id: str, prompt: tuple[int, ...], prefix: tuple[int, ...], *steps: tuple[int, ...]) -> StepPair:
    return StepPair(
        pair_id=f"{prompt_id} {prefix} {steps}",
        prompt_id=prompt_id,
        step_index=0,
        step_kind="response",
        axis="safety",
        prompt_ids=prompt,
        prefix_ids=prefix,
        chosen_ids=steps[0],
        rejected_ids=steps[1],
        chosen_text="w",
        rejected_text="l",
        margin=1.0,
        policy_version=0,
        lineage=LINEAGE,
    )


@st.composite
def trees(draw: st.DrawFn) -> list[StepPair]:
    """Pairs of two prompts, three steps deep, siblings that often begin alike."""
    pairs: list[StepPair] = []
    step = st.lists(st.integers(0, 3) | IDS, min_size=1, max_size=6).map(tuple)
    for prompt_id in ("p", "q"):
        prompt, prefix = draw(st.lists(IDS, min_size=1, max_size=6).map(tuple)), ()
        for _ in range(draw(st.integers(1, 3))):
            siblings = draw(st.lists(step, min_size=2, max_size=4, unique=True))
            pairs += [make_pair(prompt_id, prompt, prefix, siblings[0], rejected) for rejected in siblings[1:]]
            prefix += siblings[0]
    return pairs


def separate_logps(model: Any, pairs: list[StepPair]) -> torch.Tensor:
    """Chosen and rejected log-prob of each pair, every text in a forward of its own."""
    sums = []
    for pair in pairs:
        context = [*pair.prompt_ids, *pair.prefix_ids]
        for step in (pair.chosen_ids, pair.rejected_ids):
            logits = model(input_ids=torch.tensor([[*context, *step]]), use_cache=False).logits[0]
            logps = logits.float().log_softmax(-1)[len(context) - 1 : -1]
            sums.append(logps.gather(1, torch.tensor(step)[:, None]).sum())
    return torch.stack(sums)


def packed_logps(model: LogprobModel, row: Pack, pairs: list[StepPair]) -> torch.Tensor:
    logps_L = model(to_device(row, "cpu"))
    by_id = {p.pair_id: p for p in row.pairs}
    return torch.stack(
        [logps_L[i].sum() for pair in pairs for i in (by_id[pair.pair_id].chosen_L, by_id[pair.pair_id].rejected_L)]
    )


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names = dict(model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))


def assert_exact(model_type: str, pairs: list[StepPair], **more: Any) -> None:
    (row,) = pack(build_trees(pairs), 10_000)
    plain, packed = tiny(model_type, "eager", **more), tiny(model_type, register(), **more)
    want, have = separate_logps(plain, pairs), packed_logps(LogprobModel(packed), row, pairs)
    assert (want - have).abs().max() < 1e-4
    signs = torch.tensor([1.0, -0.5] * len(pairs))
    want_grads, have_grads = gradients(plain, (want * signs).sum()), gradients(packed, (have * signs).sum())
    scale = max(float(g.norm()) for g in want_grads.values())
    for name, grad in want_grads.items():
        assert float((grad - have_grads[name]).norm()) <= 1e-4 * max(float(grad.norm()), 1e-2 * scale), name


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_a_pack_has_the_log_probs_and_gradients_of_separate_forwards(pairs: list[StepPair]) -> None:
    assert_exact("llama", pairs)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@settings(max_examples=1, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pairs=trees())
def test_every_accepted_model_type_is_exact(model_type: str, pairs: list[StepPair]) -> None:
    assert_exact(model_type, pairs)


@pytest.mark.parametrize("model_type", ["mistral", "gemma2", "gemma3_text"])
@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pairs=trees())
def test_a_sliding_window_hides_what_lies_further_back(model_type: str, pairs: list[StepPair]) -> None:
    assert_exact(model_type, pairs, sliding_window=4)


def test_other_model_types_are_refused_with_the_list_of_those_that_work() -> None:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=8, n_positions=8)
    )
    with pytest.raises(ModelError, match="gpt2 cannot be trained in packed form; use a model of type gemma"):
        LogprobModel(model)


@settings(max_examples=10, deadline=None)
@given(trees())
def test_flex_attention_and_blocks_agree(pairs: list[StepPair]) -> None:
    (row,) = pack(build_trees(pairs), 10_000)
    tree = TreeMask(row, "cpu")
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 4, row.tokens, 8, generator=generator)
    key, value = (torch.randn(1, 2, row.tokens, 8, generator=generator) for _ in range(2))
    for window, softcap in ((None, None), (3, 2.0)):
        scoring = _Scoring(scale=0.3, softcap=softcap, dropout=0.0, window=window)
        blocks = block_attention(query, key, value, tree, scoring)
        assert torch.allclose(blocks, flex_attention(query, key, value, tree, scoring), atol=1e-5)


def test_recomputed_chunks_of_the_head_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair("p", (1, 2), (), (3, 4, 5), (6, 7))
    (row,) = build_trees([pair])
    model = tiny("llama", register())
    assert len(attention_blocks(row)) == 1
    assert row.tokens * VOCABULARY < KEPT_LOGITS
    whole = packed_logps(LogprobModel(model), row, [pair]).sum()
    monkeypatch.setattr("safer_ray.backends.logprobs.KEPT_LOGITS", 0)
    monkeypatch.setattr("safer_ray.backends.logprobs.CHUNK_LOGITS", 2 * VOCABULARY)
    chunked = packed_logps(LogprobModel(model), row, [pair]).sum()
    assert whole.item() == pytest.approx(chunked.item(), abs=1e-5)
    for a, b in zip(gradients(model, whole).values(), gradients(model, chunked).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@settings(max_examples=5, deadline=None)
@given(trees())
def test_an_output_layer_in_shards_is_called_once_whatever_the_pack_and_whole_ones_in_chunks(
    pairs: list[StepPair],
) -> None:
    model = LogprobModel(tiny("llama", register()))
    layer = model.model.get_output_embeddings()
    calls: list[int] = []
    layer.register_forward_hook(lambda module, given, logits: calls.append(len(logits)))

    def called(row: Pack) -> tuple[torch.Tensor, list[int]]:
        calls.clear()
        logps_L = model(to_device(row, "cpu"))
        return logps_L, list(calls)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safer_ray.backends.logprobs.KEPT_LOGITS", 0)
        patch.setattr("safer_ray.backends.logprobs.CHUNK_LOGITS", 2 * VOCABULARY)
        for row in build_trees(pairs):
            logps = []
            for grads in (torch.no_grad(), torch.enable_grad()):
                with grads:
                    chunked, by_chunks = called(row)
                    layer.weight.ds_id = 0  # the mark of a parameter that ZeRO-3 gathers for each call
                    at_once, whole = called(row)
                    del layer.weight.ds_id
                assert by_chunks == [2] * (len(chunked) // 2) + [1] * (len(chunked) % 2)
                assert whole == [len(chunked)]
                logps += [chunked, at_once]
            for other in logps[1:]:
                assert torch.allclose(logps[0], other, atol=1e-5)


def test_the_gradient_of_the_log_prob_head_is_the_numerical_one() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor([0, 6, 3, 3, 1])
    have = torch.autograd.grad(TargetLogprob.apply(logits, target).square().sum(), logits)[0]
    want = torch.autograd.grad(logits.log_softmax(-1).gather(1, target[:, None]).square().sum(), logits)[0]
    assert torch.allclose(have, want, atol=1e-5)
