"""Samplers as benchmark subjects: ours behind Ray, bare vLLM, step-wise trees, and weights on their way in."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from random import Random
from typing import Any

from benchmarks.workload import MODEL, VOCABULARY, shipped_prompts
from safer_ray.backends.base import SamplingSettings
from safer_ray.backends.vllm_sampler import VllmSampler, VllmSamplerSpec
from safer_ray.records import STEP_KINDS, Message, Rollout, SampleRequest, WeightsRef
from safer_ray.tables import to_table

KV_CACHE_GIB = 0.5
MAX_MODEL_LEN = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one run asks for: ``prompts`` requests for ``siblings`` first steps of at most ``step_tokens``."""

    prompts: int
    siblings: int
    step_tokens: int

    def settings(self) -> SamplingSettings:
        """Return the sampler's settings."""
        return SamplingSettings(max_step_tokens=self.step_tokens)

    def requests(self, turn: int) -> list[SampleRequest]:
        """Return the requests of run ``turn``: each run has prompts of its own, so none finds them cached."""
        wanted = [prompt for prompt in shipped_prompts(2000) if prompt.label == "safe"]
        first = turn * self.prompts
        chosen = (wanted * (1 + (first + self.prompts) // len(wanted)))[first : first + self.prompts]
        return [
            SampleRequest(
                request_id=f"{turn}/{number}",
                prompt_id=prompt.prompt_id,
                messages=prompt.messages,
                n=self.siblings,
                mode="step",
                seed=turn,
            )
            for number, prompt in enumerate(chosen)
        ]


def _spec(load: Load, threads: int) -> VllmSamplerSpec:
    return VllmSamplerSpec(
        model=MODEL,
        settings=load.settings(),
        kv_cache_gib=KV_CACHE_GIB,
        max_model_len=MAX_MODEL_LEN,
        threads=threads,
    )


class ThroughRay:
    """Our sampler in its actor: one call per request, tokenised, sampled, cut into steps, back as Arrow tables."""

    def __init__(self, *, threads: int, **load: int) -> None:
        import ray

        from safer_ray.cluster.actors import SamplerActor
        from safer_ray.cluster.session import ray_session

        self._ray, self._load, self._turn = ray, Load(**load), 0
        self._session = ray_session(None, 256)
        self._session.__enter__()
        options = {"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}}}
        self._actor = SamplerActor.options(**options, max_concurrency=1024).remote(_spec(self._load, threads))  # type: ignore[attr-defined]
        ray.get(self._actor.ready.remote())
        self.run()

    def run(self) -> dict[str, Any]:
        """Sample all requests of a run and look at every table."""
        self._turn += 1
        requests = self._load.requests(self._turn)
        begin = time.perf_counter()
        refs = [self._actor.sample.remote(to_table([request], SampleRequest)) for request in requests]
        tables = [table for _, table in self._ray.get(refs)]
        seconds = time.perf_counter() - begin
        tokens = sum(len(ids) for table in tables for ids in table["completion_ids"].to_pylist())
        return {"seconds": seconds, "tokens": tokens, "rate": tokens / seconds}

    def close(self) -> None:
        """Stop the cluster."""
        self._ray.get(self._actor.close.remote())
        self._session.__exit__(None, None, None)


class BareVllm:
    """``vllm.LLM.generate`` on the token ids of the same requests, with the same sampling parameters."""

    def __init__(self, *, threads: int, **load: int) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        import torch

        torch.set_num_threads(threads)
        torch._dynamo.config.disable = True
        from vllm import LLM

        from safer_ray.backends.models import ChatTokenizer, resolve_model

        model = resolve_model(MODEL)
        self._load, self._turn = Load(**load), 0
        self._tokenizer = ChatTokenizer.load(model, system_prompt="", trust_remote_code=False)
        spec = _spec(self._load, threads)
        self._parameters = object.__new__(VllmSampler)
        self._parameters._spec, self._parameters._tokenizer = spec, self._tokenizer
        self._llm = LLM(
            model=str(model),
            dtype="bfloat16",
            kv_cache_memory_bytes=int(KV_CACHE_GIB * 2**30),
            block_size=32,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=spec.max_num_seqs,
            enable_prefix_caching=True,
            enforce_eager=True,
            generation_config="vllm",
            disable_log_stats=True,
        )
        self.run()

    def run(self) -> dict[str, Any]:
        """Generate all requests of a run."""
        from vllm import TokensPrompt

        self._turn += 1
        requests = self._load.requests(self._turn)
        prompts = [TokensPrompt(prompt_token_ids=list(self._tokenizer.prompt_ids(r.messages))) for r in requests]
        parameters = [self._parameters._params(request) for request in requests]
        begin = time.perf_counter()
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - begin
        tokens = sum(len(sibling.token_ids) for output in outputs for sibling in output.outputs)
        return {"seconds": seconds, "tokens": tokens, "rate": tokens / seconds}

    def close(self) -> None:
        """Shut the engine down."""
        del self._llm


class StepwiseTrees:
    """Grows trees level by level with our sampler and counts the tokens that went through the model.

    The untrained model closes no step, so the first sibling's whole completion stands in for a step.
    """

    def __init__(self, *, threads: int, prompt_tokens: int, **load: int) -> None:
        self._load, self._prompt_tokens, self._turn = Load(**load), prompt_tokens, 0
        self._sampler = _spec(self._load, threads).build()
        self._scheduled = self._sampler._engine.exclusive(Scheduled)

    def run(self) -> dict[str, Any]:
        """Return the tokens computed, and those of as many siblings each sampled from its prompt alone."""
        self._turn += 1
        rng = Random(self._turn)
        before, cached = self._scheduled.tokens, self._scheduled.cached
        begin, alone, asked = time.perf_counter(), 0, 0
        text = [
            " ".join(str(rng.choice(VOCABULARY)) for _ in range(self._prompt_tokens // 6))
            for _ in range(self._load.prompts)
        ]
        requests = [
            SampleRequest(
                request_id=f"{self._turn}/{number}",
                prompt_id=f"{self._turn}/{number}",
                messages=(Message(role="user", content=words),),
                n=self._load.siblings,
                mode="step",
            )
            for number, words in enumerate(text)
        ]
        for level in range(len(STEP_KINDS)):
            rollouts = self._sampler.sample(requests)
            asked += sum(len(r.prompt_ids) + len(r.prefix_ids) for r in rollouts)
            alone += sum(len(r.prompt_ids) + len(r.prefix_ids) + len(r.completion_ids) for r in rollouts)
            if level + 1 < len(STEP_KINDS):
                requests = [_deeper(r, rollouts, level + 1) for r in requests]
        computed = self._scheduled.tokens - before
        return {
            "seconds": time.perf_counter() - begin,
            "computed_tokens": computed,
            "alone_tokens": alone,
            "hit_rate": (self._scheduled.cached - cached) / asked,
            "rate": computed / alone,
        }

    def close(self) -> None:
        """Shut the engine down."""
        self._sampler.close()


class Scheduled:
    """Counts the tokens that an engine's scheduler gives to the model, those of every sibling."""

    def __init__(self, engine: Any) -> None:
        self.tokens = self.cached = 0
        scheduler = engine.engine_core.engine_core.scheduler  # the engine runs in this process
        schedule = scheduler.schedule

        def counted(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            self.tokens += output.total_num_scheduled_tokens
            self.cached += sum(request.num_computed_tokens for request in output.scheduled_new_reqs)
            return output

        scheduler.schedule = counted


def _deeper(request: SampleRequest, rollouts: list[Rollout], level: int) -> SampleRequest:
    first = next(rollout for rollout in rollouts if rollout.prompt_id == request.prompt_id)
    return SampleRequest(
        request_id=f"{request.request_id}/{level}",
        prompt_id=request.prompt_id,
        messages=request.messages,
        prefix_ids=first.prefix_ids + first.completion_ids,
        first_step=level,
        n=request.n,
        mode="step",
    )


class Publishing:
    """The learner's weights, written once and loaded by ``samplers`` engines in actors of their own, confirmed."""

    def __init__(self, *, threads: int, samplers: int) -> None:
        import ray
        import torch

        from safer_ray.backends.policy_model import load_policy
        from safer_ray.cluster.actors import SamplerActor
        from safer_ray.cluster.session import ray_session

        torch.set_num_threads(threads)
        self._ray, self._version = ray, 0
        self._kept: list[WeightsRef] = []
        self._policy = load_policy(MODEL, dtype="bf16", trust_remote_code=False, zero3_config=None)
        self._session = ray_session(None, 256)
        self._session.__enter__()
        each = max(1, threads // samplers)
        spec = _spec(Load(prompts=1, siblings=1, step_tokens=16), each)
        options = {"num_cpus": 0, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(each)}}}
        self._actors = []
        for _ in range(samplers):  # one after the other: importing vLLM at once on two cores takes no less time
            actor = SamplerActor.options(**options, max_concurrency=64).remote(spec)  # type: ignore[attr-defined]
            ray.get(actor.ready.remote())
            self._actors.append(actor)
        for _ in range(3):  # from the third version on a file is written over, as in a run
            self.run()

    def run(self) -> dict[str, Any]:
        """Publish one version to all samplers; beside it, copy the same bytes in memory."""
        import torch

        from safer_ray.backends.policy_model import merged_state
        from safer_ray.backends.weights import write_weights

        self._version += 1
        begin = time.perf_counter()
        oldest = self._kept.pop(0) if len(self._kept) == 2 else None  # a learner keeps two versions
        ref = write_weights(merged_state(self._policy, zero_stage=0), self._version, recycled=oldest)
        written = time.perf_counter()
        loaded: list[WeightsRef] = self._ray.get([actor.load_weights.remote(ref) for actor in self._actors])
        end = time.perf_counter()
        assert all((got.version, got.checksum) == (ref.version, ref.checksum) for got in loaded)
        self._kept.append(ref)
        source, target = (torch.zeros(ref.nbytes, dtype=torch.uint8) for _ in range(2))
        copies = []
        for _ in range(5):
            start = time.perf_counter()
            target.copy_(source)
            copies.append(time.perf_counter() - start)
        return {
            "seconds": end - begin,
            "write_s": written - begin,
            "load_s": end - written,
            "nbytes": ref.nbytes,
            "copy_s": statistics.median(copies),
            "rate": end - begin,
        }

    def close(self) -> None:
        """Free the weights and stop the cluster."""
        from safer_ray.backends.weights import free_weights

        for ref in self._kept:
            free_weights(ref)
        self._ray.get([actor.close.remote() for actor in self._actors])
        self._session.__exit__(None, None, None)


__all__ = ["BareVllm", "Publishing", "StepwiseTrees", "ThroughRay"]
