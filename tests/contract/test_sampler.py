"""What every sampler must do, over the fake and over real vLLM on the tiny model."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import logprobs_under

from safer_ray.backends.base import Sampler, SamplerSpec, SamplingSettings
from safer_ray.backends.fake import FakeSamplerSpec, ToyTokenizer, fake_weights
from safer_ray.backends.models import ChatTokenizer
from safer_ray.backends.vllm_sampler import VllmSamplerSpec
from safer_ray.backends.weights import free_weights, gather_state, write_weights
from safer_ray.core.trace import STEP_STOPS, Trace, render
from safer_ray.errors import SamplerError, WeightsError
from safer_ray.records import STEP_KINDS, Message, Rollout, SampleMode, SampleRequest, WeightsRef

MAX_MODEL_TOKENS = 768
SETTINGS = SamplingSettings(temperature=1.0, max_step_tokens=24, max_trace_tokens=160, max_answer_tokens=24)
QUESTION = (Message(role="user", content="How do I bake bread?"),)
LESSON = Trace(
    assessment="The user asks how to bake bread.",
    verification="No rule is violated: R00.",
    calibration="Answer in full.",
    response="Mix flour, water, salt and yeast, then bake it.",
)
FAKE = FakeSamplerSpec(max_model_tokens=MAX_MODEL_TOKENS, malformed_share=0.0, truncated_share=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A running sampler, the tokenizer of its model, the weights it started with, and others."""

    sampler: Sampler
    tokenizer: ToyTokenizer | ChatTokenizer
    first: WeightsRef
    other: WeightsRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights of the tiny model: as made, and after it learnt ``LESSON`` by heart; as modules and published."""

    model: Any
    taught: Any
    first: WeightsRef
    other: WeightsRef


@pytest.fixture(scope="module")
def weights(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weights]:
    from transformers import AutoModelForCausalLM

    model, taught = (AutoModelForCausalLM.from_pretrained(tiny_model).eval() for _ in range(2))
    teach_by_heart(taught, ChatTokenizer.load(tiny_model))
    directory = str(tmp_path_factory.mktemp("weights"))
    first, other = (
        write_weights(gather_state(model, zero_stage=0), 0),
        write_weights(gather_state(taught, zero_stage=0), 1, directory),
    )
    yield Weights(model=model, taught=taught, first=first, other=other)
    free_weights(first)


def teach_by_heart(model: Any, tokenizer: ChatTokenizer) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # operations this small only wait for each other
    prompt = tokenizer.prompt_ids(QUESTION)
    ids = torch.tensor([prompt + tokenizer.encode_trace(LESSON)[0]])
    labels = ids.clone()
    labels[0, : len(prompt)] = -100
    model.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(300):
        loss = model(input_ids=ids, labels=labels).loss
        if loss.item() < 0.005:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02, "the lesson was not learnt"
    model.bfloat16()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def vllm(tiny_model: Path, weights: Weights) -> Iterator[Backend]:
    spec = VllmSamplerSpec(
        model=str(tiny_model),
        settings=SETTINGS,
        max_model_len=MAX_MODEL_TOKENS,
        max_num_seqs=16,
        kv_cache_gib=0.125,
        threads=1,
    )
    sampler = spec.build()
    yield Backend(sampler=sampler, tokenizer=ChatTokenizer.load(tiny_model), first=weights.first, other=weights.other)
    sampler.close()


@pytest.fixture(scope="module")
def fake() -> Backend:
    return Backend(sampler=FAKE.build(), tokenizer=ToyTokenizer(), first=fake_weights(0), other=fake_weights(1))


@pytest.fixture(params=["fake", "vllm"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    backend: Backend = request.getfixturevalue(request.param)
    yield backend
    backend.sampler.load_weights(backend.first)


def ask(
    name: str = "q", *, n: int = 1, mode: SampleMode = "step", seed: int = 0, text: str = QUESTION[0].content
) -> SampleRequest:
    return SampleRequest(
        request_id=f"request-{name}",
        prompt_id=f"prompt-{name}",
        messages=(Message(role="user", content=text),),
        n=n,
        mode=mode,
        seed=seed,
    )


def after(rollout: Rollout, request: SampleRequest) -> SampleRequest:
    """Ask for the step after ``rollout``."""
    prefix_ids = rollout.prefix_ids + rollout.completion_ids
    return replace(request, prefix_ids=prefix_ids, first_step=rollout.first_step + 1)


MODES: tuple[SampleMode, ...] = ("step", "trace", "answer")


@pytest.mark.parametrize(
    "spec", [FAKE, VllmSamplerSpec(model="embedded:smollm2-135m", settings=SETTINGS)], ids=["fake", "vllm"]
)
def test_a_spec_survives_pickling(spec: SamplerSpec) -> None:
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_siblings_come_in_request_order(backend: Backend) -> None:
    requests = [ask("a", n=3), ask("b", n=1, mode="trace"), ask("c", n=2, mode="answer")]
    rollouts = backend.sampler.sample(requests)
    assert [(r.prompt_id, r.sample_index) for r in rollouts] == [
        ("prompt-a", 0), ("prompt-a", 1), ("prompt-a", 2), ("prompt-b", 0), ("prompt-c", 0), ("prompt-c", 1),
    ]  # fmt: skip
    assert len({r.rollout_id for r in rollouts}) == len(rollouts)


def test_siblings_differ(backend: Backend) -> None:
    rollouts = backend.sampler.sample([ask(n=8, mode="trace")])
    assert len({r.completion_ids for r in rollouts}) > 1


def test_the_prompt_ids_are_the_tokenizers(backend: Backend) -> None:
    (rollout,) = backend.sampler.sample([ask()])
    assert rollout.prompt_ids == backend.tokenizer.prompt_ids(QUESTION)


@pytest.mark.parametrize("mode", MODES)
def test_the_text_is_the_decoded_token_ids(backend: Backend, mode: SampleMode) -> None:
    for rollout in backend.sampler.sample([ask(n=3, mode=mode)]):
        assert rollout.text == "".join(backend.tokenizer.decode_pieces(rollout.completion_ids))
        for step in rollout.steps:
            pieces = backend.tokenizer.decode_pieces(rollout.completion_ids[step.start : step.stop])
            assert step.text == "".join(pieces)


@pytest.mark.parametrize("mode", MODES)
def test_steps_follow_each_other_from_the_first_step_on(backend: Backend, mode: SampleMode) -> None:
    for rollout in backend.sampler.sample([ask(n=2, mode=mode)]):
        kinds = tuple(step.kind for step in rollout.steps)
        assert kinds == STEP_KINDS[rollout.first_step : rollout.first_step + len(kinds)]
        assert rollout.first_step == (3 if mode == "answer" else 0)
        assert len(kinds) == 1 or mode == "trace"


@pytest.mark.parametrize("mode", MODES)
def test_every_token_has_a_log_prob(backend: Backend, mode: SampleMode) -> None:
    for rollout in backend.sampler.sample([ask(n=2, mode=mode)]):
        assert len(rollout.logprobs) == len(rollout.completion_ids)
        assert max(rollout.logprobs) <= 0.0


def test_each_step_continues_its_frozen_prefix_and_stops_at_its_own_end(backend: Backend) -> None:
    backend.sampler.load_weights(backend.other)
    request, text = ask(), ""
    for kind, stop in zip(STEP_KINDS, STEP_STOPS, strict=True):
        (rollout,) = backend.sampler.sample([request])
        assert rollout.prefix_ids == request.prefix_ids
        assert [step.kind for step in rollout.steps] == [kind]
        assert rollout.finish == "stop"
        assert rollout.text.endswith(stop)
        text += rollout.text
        if kind == STEP_KINDS[-1]:
            break
        request = after(rollout, request)
    assert rollout.completion_ids[-1] == backend.tokenizer.end_of_turn_id
    assert text.count("</think>") == 1


def test_the_same_request_gives_the_same_rollouts(backend: Backend) -> None:
    requests = [ask(n=3), ask("b", n=2, mode="trace")]
    assert backend.sampler.sample(requests) == backend.sampler.sample(requests)


def test_another_seed_gives_other_siblings(backend: Backend) -> None:
    first, second = (backend.sampler.sample([ask(n=4, mode="trace", seed=seed)]) for seed in (0, 1))
    assert {r.completion_ids for r in first} != {r.completion_ids for r in second}


def test_the_policy_version_is_stamped_on_every_rollout(backend: Backend) -> None:
    assert {r.policy_version for r in backend.sampler.sample([ask(n=2)])} == {0}
    assert backend.sampler.load_weights(backend.other) == backend.other
    assert backend.sampler.policy_version == 1
    assert {r.policy_version for r in backend.sampler.sample([ask(n=2)])} == {1}


def test_new_weights_change_what_is_sampled_and_old_ones_change_it_back(backend: Backend) -> None:
    request = ask(n=4, mode="trace")
    before = backend.sampler.sample([request])
    backend.sampler.load_weights(backend.other)
    changed = backend.sampler.sample([request])
    backend.sampler.load_weights(backend.first)
    assert [r.completion_ids for r in changed] != [r.completion_ids for r in before]
    assert backend.sampler.sample([request]) == before


def test_a_wrong_checksum_is_refused_and_nothing_is_served_until_good_weights_come(backend: Backend) -> None:
    with pytest.raises(WeightsError, match="checksum"):
        backend.sampler.load_weights(replace(backend.other, checksum="xxh3:0"))
    with pytest.raises(SamplerError):
        backend.sampler.sample([ask()])
    backend.sampler.load_weights(backend.other)
    assert backend.sampler.sample([ask()])[0].policy_version == 1


def test_a_living_sampler_brings_a_token_and_one_without_confirmed_weights_does_not(backend: Backend) -> None:
    backend.sampler.alive()
    with pytest.raises(WeightsError):
        backend.sampler.load_weights(replace(backend.other, checksum="0"))
    with pytest.raises(SamplerError):
        backend.sampler.alive()
    backend.sampler.load_weights(backend.first)
    backend.sampler.alive()


def test_concurrent_calls_return_what_each_asked_for(backend: Backend) -> None:
    def sample(index: int) -> list[Rollout]:
        return backend.sampler.sample([ask(f"{index}-{i}", n=2) for i in range(2)])

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(sample, range(4)))
    for index, rollouts in enumerate(answers):
        assert [r.prompt_id for r in rollouts] == [f"prompt-{index}-{i}" for i in (0, 0, 1, 1)]


def test_weights_that_come_while_requests_run_never_mix_with_them(backend: Backend) -> None:
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(backend.sampler.sample, [ask(str(i), n=2, mode="trace")]) for i in range(2)]
        backend.sampler.load_weights(backend.other)
        rollouts = [rollout for future in running for rollout in future.result()]
    assert {r.policy_version for r in rollouts} <= {0, 1}
    for rollout in rollouts:
        backend.sampler.load_weights(backend.other if rollout.policy_version else backend.first)
        again = backend.sampler.sample([ask(rollout.prompt_id.removeprefix("prompt-"), n=2, mode="trace")])
        assert again[rollout.sample_index].text[:20] == rollout.text[:20]


def test_a_prompt_that_is_too_long_is_refused_by_name(backend: Backend) -> None:
    with pytest.raises(SamplerError, match=f"request-long.*{MAX_MODEL_TOKENS}"):
        backend.sampler.sample([ask("short"), ask("long", text="word " * MAX_MODEL_TOKENS)])


def test_stats_count_what_was_sampled(backend: Backend) -> None:
    before = backend.sampler.stats()
    rollouts = backend.sampler.sample([ask("x", n=2), ask("y")])
    stats = backend.sampler.stats()
    assert stats.requests - before.requests == 2
    assert stats.generated_tokens - before.generated_tokens == sum(len(r.completion_ids) for r in rollouts)


def test_a_closed_sampler_says_so() -> None:
    sampler = FAKE.build()
    sampler.close()
    sampler.close()
    with pytest.raises(SamplerError, match="closed"):
        sampler.sample([ask()])


def test_vllm_writes_the_trace_its_new_weights_know_by_heart(vllm: Backend) -> None:
    vllm.sampler.load_weights(vllm.other)
    (rollout,) = vllm.sampler.sample([ask(mode="trace")])
    vllm.sampler.load_weights(vllm.first)
    assert rollout.text == render(LESSON)
    assert (rollout.completion_ids, rollout.steps) == vllm.tokenizer.encode_trace(LESSON)


def test_vllm_logprobs_are_those_of_the_weights_it_was_given(vllm: Backend, weights: Weights) -> None:
    for ref, model in ((vllm.other, weights.taught), (vllm.first, weights.model)):
        vllm.sampler.load_weights(ref)
        for rollout in vllm.sampler.sample([ask(n=3)]):
            assert rollout.logprobs == pytest.approx(logprobs_under(model, rollout), abs=0.1)


def test_vllm_serves_siblings_of_more_prompt_tokens_than_one_step_takes(vllm: Backend) -> None:
    requests = [ask(f"long-{i}", n=2, text=f"{i} and then " + "what do we do now? " * 60) for i in range(8)]
    rollouts = vllm.sampler.sample(requests)
    assert [rollout.prompt_id for rollout in rollouts] == [each.prompt_id for each in requests for _ in range(2)]
    assert sum(len(rollout.prompt_ids) for rollout in rollouts[::2]) > 2048


def test_vllm_refuses_weights_that_leave_a_parameter_out(vllm: Backend, weights: Weights, tmp_path: Path) -> None:
    state = [(n, t) for n, t in gather_state(weights.model, zero_stage=0) if "layers.1.mlp.down_proj" not in n]
    with pytest.raises(WeightsError, match=r"hold nothing for .*down_proj"):
        vllm.sampler.load_weights(write_weights(state, 2, str(tmp_path)))
    with pytest.raises(SamplerError, match="v2 were not confirmed"):
        vllm.sampler.sample([ask()])
    vllm.sampler.load_weights(vllm.first)


@pytest.mark.parametrize("spoil", [lambda ref: replace(ref, version=9), lambda ref: replace(ref, uri="file:///gone")])
def test_vllm_refuses_weights_of_another_version_or_place(
    vllm: Backend, spoil: Callable[[WeightsRef], WeightsRef]
) -> None:
    with pytest.raises(WeightsError):
        vllm.sampler.load_weights(spoil(vllm.other))
    vllm.sampler.load_weights(vllm.first)
    assert vllm.sampler.sample([ask()])[0].policy_version == 0


def test_vllm_shares_the_prompt_between_siblings(vllm: Backend) -> None:
    before = vllm.sampler.stats()
    vllm.sampler.sample([ask("shared", n=4, text="Tell me how to write a letter to my landlord. " * 5)])
    assert vllm.sampler.stats().cached_prompt_tokens > before.cached_prompt_tokens
