"""Fake twins of the backends, for tests of the loop and for trying a config without a model.

They keep the protocols of ``base`` to the letter, need neither torch nor vLLM nor Ray, and depend on the seed and
on the request alone: never on call order, batching or threads. Faults are options of the specs.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from safer_ray.backends.base import SamplerStats
from safer_ray.backends.fake_judging import FakeJudge, FakeJudgeSpec, FakeTeacher, FakeTeacherSpec
from safer_ray.backends.fake_learner import FakeLearner, FakeLearnerSpec, fake_weights
from safer_ray.backends.toy_policy import digest_rng, is_strict, toy_facts, toy_prompts, write_step
from safer_ray.backends.toy_tokenizer import ToyTokenizer
from safer_ray.core.trace import Trace, segments, split_steps, step_text
from safer_ray.errors import SamplerError, WeightsError
from safer_ray.records import STEP_KINDS, Finish, Rollout, SampleRequest, WeightsRef

_FOLLOWS = 0.9
"""How often a step takes the stance of the step before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSamplerSpec:
    """Builds a :class:`FakeSampler`.

    The policy is right about a prompt with chance ``quality`` at version 0 and ``quality_gain`` more per version (at
    most 0.98). ``malformed_share`` of the steps lack their closing tag, ``truncated_share`` stop half-way. Every
    ``fail_every``-th call of ``sample`` raises SamplerError; ``delay_s`` is slept in each call.
    """

    seed: int = 0
    quality: float = 0.6
    quality_gain: float = 0.1
    malformed_share: float = 0.01
    truncated_share: float = 0.01
    max_model_tokens: int = 8192
    fail_every: int | None = None
    delay_s: float = 0.0

    def build(self) -> FakeSampler:
        """Return the sampler, at policy version 0."""
        return FakeSampler(self)


class FakeSampler:
    """A toy policy over :class:`ToyTokenizer` ids.

    A sibling is drawn from (spec seed, request seed, prompt, sibling number, policy version, step, prefix). So steps
    sampled one by one, each after the last, give the same trace as one request for the whole.
    """

    name = "fake-sampler@1"

    def __init__(self, spec: FakeSamplerSpec) -> None:
        self._spec = spec
        self._tokenizer = ToyTokenizer()
        self._lock = threading.Lock()
        self._version = 0
        self._refused = ""
        self._calls = self._requests = self._generated = self._prompted = self._cached = 0
        self._generation_s = 0.0

    @property
    def policy_version(self) -> int:
        """The version confirmed last."""
        return self._version

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        """Return ``n`` siblings per request, in request order.

        Raises:
            SamplerError: if the last weights were refused, if a prompt is too long, or on a ``fail_every``-th call.
        """
        started_s = time.perf_counter()
        with self._lock:
            self._calls += 1
            calls, version, refused = self._calls, self._version, self._refused
        time.sleep(self._spec.delay_s)
        if refused:
            raise SamplerError(f"sampler {self.name}: serves nothing since {refused}; load confirmed weights first")
        if self._spec.fail_every and calls % self._spec.fail_every == 0:
            raise SamplerError(f"sampler {self.name}: call {calls} failed, as fail_every asks; sample again")
        rollouts = [self._rollout(request, i, version) for request in requests for i in range(request.n)]
        context = [len(rollout.prompt_ids) + len(rollout.prefix_ids) for rollout in rollouts]
        with self._lock:
            self._requests += len(requests)
            self._generated += sum(len(rollout.completion_ids) for rollout in rollouts)
            self._prompted += sum(context)
            self._cached += sum(n for n, rollout in zip(context, rollouts, strict=True) if rollout.sample_index)
            self._generation_s += time.perf_counter() - started_s
        return rollouts

    def alive(self) -> None:
        """Write one step about nothing.

        Raises:
            SamplerError: if it serves nothing.
        """
        with self._lock:
            refused = self._refused
        if refused:
            raise SamplerError(f"sampler {self.name}: serves nothing since {refused}; load confirmed weights first")
        write_step(0, toy_facts("alive", ""), strict=False, wordiness=0.0, rng=random.Random(0))

    def _rollout(self, request: SampleRequest, sibling: int, version: int) -> Rollout:
        prompt_ids = self._tokenizer.prompt_ids(request.messages)
        if len(prompt_ids) + len(request.prefix_ids) >= self._spec.max_model_tokens:
            raise SamplerError(
                f"sampler {self.name}: request {request.request_id} has {len(prompt_ids)} prompt tokens, over "
                f"max_model_tokens {self._spec.max_model_tokens}; shorten the prompt"
            )
        first_step = 3 if request.mode == "answer" else request.first_step
        prefix = "".join(self._tokenizer.decode_pieces(request.prefix_ids))
        texts, finish = self._texts(request, sibling, version, prefix)
        ids = [i for text in texts for i in self._tokenizer.segment_ids(text)]
        if finish == "stop" and first_step + len(texts) == len(STEP_KINDS):
            ids.append(self._tokenizer.end_of_turn_id)
        rng = self._rng(request, sibling, version, "logprobs")
        return Rollout(
            rollout_id=f"{request.request_id}/{sibling}",
            prompt_id=request.prompt_id,
            sample_index=sibling,
            first_step=first_step,
            policy_version=version,
            prompt_ids=prompt_ids,
            prefix_ids=request.prefix_ids,
            completion_ids=tuple(ids),
            logprobs=tuple(-rng.expovariate(2.0) for _ in ids),
            steps=split_steps(self._tokenizer.decode_pieces(ids), first_step),
            finish=finish,
        )

    def _texts(self, request: SampleRequest, sibling: int, version: int, prefix: str) -> tuple[list[str], Finish]:
        if request.mode == "answer":
            # the untrained model answers plainly, whatever is asked
            rng = self._rng(request, sibling, version, "answer")
            facts = toy_facts(request.prompt_id, request.messages[-1].content)
            return [write_step(3, facts, strict=rng.random() < 0.1, wordiness=1.0, rng=rng)], "stop"
        last = request.first_step if request.mode == "step" else len(STEP_KINDS) - 1
        texts: list[str] = []
        for index in range(request.first_step, last + 1):
            text, finish = self._segment(request, sibling, version, (index, prefix + "".join(texts)))
            texts.append(text)
            if finish == "length":
                return texts, "length"
        return texts, "stop"

    def _segment(
        self, request: SampleRequest, sibling: int, version: int, context: tuple[int, str]
    ) -> tuple[str, Finish]:
        index, before = context
        rng = self._rng(request, sibling, version, index, before)
        facts = toy_facts(request.prompt_id, request.messages[-1].content)
        quality = min(0.98, self._spec.quality + self._spec.quality_gain * version)
        strict = facts.unsafe == (rng.random() < quality)
        if index and rng.random() < _FOLLOWS:
            strict = _stance_before(index, before)
        content = write_step(index, facts, strict=strict, wordiness=1.0 - quality, rng=rng)
        text = _tagged(index, content)
        fault = rng.random()
        if fault < self._spec.truncated_share:
            return text[: len(text) // 2], "length"
        if index < 3 and fault < self._spec.truncated_share + self._spec.malformed_share:
            return text.replace(f"</{STEP_KINDS[index]}>", "").replace("</think>", ""), "stop"
        return text, "stop"

    def _rng(self, request: SampleRequest, sibling: int, version: int, *key: object) -> random.Random:
        return digest_rng(self._spec.seed, request.seed, request.prompt_id, sibling, version, *key)

    def load_weights(self, ref: WeightsRef) -> WeightsRef:
        """Take the version of a reference from :func:`fake_weights`.

        Raises:
            WeightsError: if uri or checksum are not those of the version; nothing is served until the next good load.
        """
        want = fake_weights(ref.version)
        with self._lock:
            if (ref.uri, ref.checksum) != (want.uri, want.checksum):
                self._refused = f"weights version {ref.version} did not match their checksum"
                raise WeightsError(
                    f"sampler {self.name}: {ref.uri} version {ref.version} has checksum {want.checksum}, not "
                    f"{ref.checksum}; publish the weights again"
                )
            self._version, self._refused = ref.version, ""
        return want

    def stats(self) -> SamplerStats:
        """Return counters since the sampler was built; siblings after the first count as cached prompts."""
        with self._lock:
            return SamplerStats(
                requests=self._requests,
                generated_tokens=self._generated,
                prompt_tokens=self._prompted,
                cached_prompt_tokens=self._cached,
                generation_s=self._generation_s,
            )

    def close(self) -> None:
        """Refuse to serve from now on."""
        with self._lock:
            self._refused = "it was closed"


def _tagged(index: int, content: str) -> str:
    """Return one step's segment with its tags."""
    texts = ["x"] * len(STEP_KINDS)
    texts[index] = content
    return segments(Trace(**dict(zip(STEP_KINDS, texts, strict=True))))[index]


def _stance_before(index: int, before: str) -> bool:
    steps = split_steps(list(before)) if before else ()
    text = step_text(index - 1, steps[index - 1].text) if len(steps) >= index else None
    return is_strict(index - 1, text or "")


__all__ = [
    "FakeJudge", "FakeJudgeSpec", "FakeLearner", "FakeLearnerSpec", "FakeSampler", "FakeSamplerSpec", "FakeTeacher",
    "FakeTeacherSpec", "ToyTokenizer", "fake_weights", "toy_prompts",
]  # fmt: skip
