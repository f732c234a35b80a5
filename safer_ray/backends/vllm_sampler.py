"""The real sampler: a vLLM engine in this process, fed with token ids and updated in place."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safer_ray.backends.base import SamplerStats, SamplingSettings
from safer_ray.backends.models import ChatTokenizer, resolve_model
from safer_ray.backends.vllm_engine_thread import EngineThread, Generated
from safer_ray.core.trace import STEP_STOPS, split_steps
from safer_ray.errors import SamplerError, WeightsError, boundary
from safer_ray.records import STEP_KINDS, Finish, Rollout, SampleRequest, Step, WeightsRef

if TYPE_CHECKING:
    from vllm import CompletionOutput, SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

logger = logging.getLogger(__name__)
_FINISH: dict[str | None, Finish] = {"stop": "stop", "length": "length"}
_LAST_STEP = len(STEP_KINDS) - 1
_CPU_BLOCK_TOKENS = 32
"""Prefixes are shared in whole blocks; vLLM's 128 on CPU is longer than most of our prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSamplerSpec:
    """Builds a :class:`VllmSampler`.

    ``kv_cache_gib`` is for CPU; on GPUs the cache is what ``gpu_memory_utilization`` leaves. ``threads`` None
    leaves the number of CPU threads to the process. ``system_prompt`` as in :class:`ChatTokenizer`. With
    ``fp32_where_faster`` a bf16 engine on a CPU that is faster so computes in fp32, with the same weights.
    """

    model: str
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    tensor_parallel: int = 1
    gpu_memory_utilization: float = 0.9
    kv_cache_gib: float = 1.0
    max_model_len: int = 2048
    max_num_seqs: int = 64
    threads: int | None = None
    dtype: str = "bfloat16"
    fp32_where_faster: bool = False
    system_prompt: str | None = ""
    trust_remote_code: bool = False
    seed: int = 0

    def build(self) -> VllmSampler:
        """Load the model and start the engine.

        Raises:
            ModelError: if the model cannot be found or has no chat template.
            SamplerError: if the engine does not start.
        """
        model = resolve_model(self.model)
        tokenizer = ChatTokenizer.load(
            model, system_prompt=self.system_prompt, trust_remote_code=self.trust_remote_code
        )
        return VllmSampler(self, model, tokenizer)


class VllmSampler:
    """A :class:`~safer_ray.backends.base.Sampler` on vLLM.

    Log-probs are those of the policy itself (temperature 1, no top-p), whatever the sampling settings.
    A single ``trace`` or ``answer`` is greedy if the settings say so; siblings are always sampled.
    """

    def __init__(self, spec: VllmSamplerSpec, model: Path | str, tokenizer: ChatTokenizer) -> None:
        begin = time.perf_counter()
        self._spec = spec
        self._tokenizer = tokenizer
        self._engine = EngineThread(lambda: _build_engine(spec, model))
        self._max_model_len: int = self._engine.exclusive(lambda engine: engine.model_config.max_model_len)
        self._counting = threading.Lock()
        self._counts = {"requests": 0, "generated_tokens": 0, "prompt_tokens": 0, "cached_prompt_tokens": 0}
        logger.info("vllm sampler ready model=%s in_s=%.1f", model, time.perf_counter() - begin)

    @property
    def name(self) -> str:
        """The engine and its version, for lineage."""
        import vllm

        return f"vllm@{vllm.__version__}"

    @property
    def policy_version(self) -> int:
        """The version of the weights in use; 0 are those the engine started with."""
        return self._engine.policy_version

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        """Return ``n`` siblings per request, in request order.

        Raises:
            SamplerError: if a prompt does not fit, or the engine failed or refuses to serve.
        """
        prompts = [self._prompt_ids(request) for request in requests]
        futures = [
            self._engine.generate(f"request {request.request_id}", prompt + request.prefix_ids, self._params(request))
            for request, prompt in zip(requests, prompts, strict=True)
        ]
        rollouts: list[Rollout] = []
        for request, prompt, future in zip(requests, prompts, futures, strict=True):
            generated = future.result()
            self._count(generated)
            outputs = sorted(generated.output.outputs, key=lambda output: output.index)
            rollouts += [self._rollout(request, prompt, output, generated.policy_version) for output in outputs]
        return rollouts

    def alive(self) -> None:
        """Generate one token in the batch that runs.

        Raises:
            SamplerError: if the engine has ended, failed or refuses to serve.
        """
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
        self._engine.generate("sign of life", (min(self._tokenizer.stop_ids),), params).result()

    def load_weights(self, ref: WeightsRef) -> WeightsRef:
        """Replace the weights once the running requests are done, and return what is now loaded.

        Raises:
            WeightsError: if version, checksum or what the engine holds afterwards differ from ``ref``, or a parameter
                got nothing; the sampler refuses to serve until a good version is loaded.
        """
        return self._engine.exclusive(lambda engine: self._update(engine, ref))

    def stats(self) -> SamplerStats:
        """Return counters since the sampler was built; generation_s is the time the engine was stepping."""
        with self._counting:
            return SamplerStats(**self._counts, generation_s=self._engine.busy_s)

    def close(self) -> None:
        """Shut the engine down. Safe to call twice."""
        self._engine.close()

    def _prompt_ids(self, request: SampleRequest) -> tuple[int, ...]:
        with boundary(SamplerError, f"prompt {request.prompt_id}: the chat template refuses it"):
            ids = self._tokenizer.prompt_ids(request.messages)
        have, more = len(ids) + len(request.prefix_ids), self._max_tokens(request)
        if have + more > self._max_model_len:
            raise SamplerError(
                f"request {request.request_id}: prompt {request.prompt_id} has {have} tokens, prefix included; with"
                f" {more} to generate they exceed max_model_len {self._max_model_len}; shorten or drop the prompt, or"
                " raise max_model_len"
            )
        return ids

    def _max_tokens(self, request: SampleRequest) -> int:
        settings = self._spec.settings
        match request.mode:
            case "step":
                return settings.max_step_tokens
            case "trace":
                return settings.max_trace_tokens
            case "answer":
                return settings.max_answer_tokens

    def _params(self, request: SampleRequest) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings, stepwise = self._spec.settings, request.mode == "step"
        stop = STEP_STOPS[request.first_step] if stepwise else ""
        greedy = not stepwise and request.n == 1 and settings.greedy_traces
        with boundary(SamplerError, f"request {request.request_id}"):
            return SamplingParams(
                n=request.n,
                temperature=0.0 if greedy else settings.temperature,
                top_p=1.0 if greedy else settings.top_p,
                max_tokens=self._max_tokens(request),
                stop=[stop] if stop else None,
                stop_token_ids=sorted(self._tokenizer.stop_ids),
                include_stop_str_in_output=True,
                detokenize=bool(stop),  # only a stop text needs the text while sampling
                skip_special_tokens=False,  # some models have trace tags as special tokens
                logprobs=0,
                flat_logprobs=True,
                seed=self._seed(request),
                output_kind=RequestOutputKind.FINAL_ONLY,
            )

    def _seed(self, request: SampleRequest) -> int:
        """Return a seed that siblings, which vLLM numbers upwards from it, never share with another request."""
        what = f"{self._spec.seed}/{request.seed}/{request.first_step}/{request.prompt_id}"
        return int.from_bytes(hashlib.blake2b(what.encode(), digest_size=7).digest(), "big")

    def _rollout(
        self, request: SampleRequest, prompt_ids: tuple[int, ...], output: CompletionOutput, policy_version: int
    ) -> Rollout:
        ids = tuple(output.token_ids)
        if not ids:
            raise SamplerError(f"request {request.request_id}: the engine returned no token for sibling {output.index}")
        return Rollout(
            rollout_id=f"{request.request_id}/{output.index}",
            prompt_id=request.prompt_id,
            sample_index=output.index,
            first_step=_LAST_STEP if request.mode == "answer" else request.first_step,
            policy_version=policy_version,
            prompt_ids=prompt_ids,
            prefix_ids=request.prefix_ids,
            completion_ids=ids,
            logprobs=_sampled_logprobs(output),
            steps=self._steps(request, ids),
            finish=_FINISH.get(output.finish_reason, "abort"),
        )

    def _steps(self, request: SampleRequest, ids: Sequence[int]) -> tuple[Step, ...]:
        pieces = self._tokenizer.decode_pieces(ids)
        if request.mode == "trace":
            return split_steps(pieces, request.first_step)
        kind = STEP_KINDS[request.first_step if request.mode == "step" else _LAST_STEP]
        return (Step(kind=kind, start=0, stop=len(ids), text="".join(pieces)),)

    def _count(self, generated: Generated) -> None:
        output = generated.output
        with self._counting:
            self._counts["requests"] += 1
            self._counts["generated_tokens"] += sum(len(sibling.token_ids) for sibling in output.outputs)
            self._counts["prompt_tokens"] += len(output.prompt_token_ids or ())
            self._counts["cached_prompt_tokens"] += output.num_cached_tokens or 0

    def _update(self, engine: LLMEngine, ref: WeightsRef) -> WeightsRef:
        begin = time.perf_counter()
        self._engine.refusal = (
            f"{self.name}: weights v{ref.version} were not confirmed; load a good version before sampling"
        )
        with boundary(WeightsError, f"{self.name}: weights v{ref.version}"):
            engine.collective_rpc("start_weight_update")
            engine.collective_rpc("update_weights", args=(asdict(ref),))
            engine.collective_rpc("finish_weight_update")
            reports: list[dict[str, Any]] = engine.collective_rpc("loaded_weights")
            for rank, report in enumerate(reports):
                _confirm(ref, report, f"{self.name} rank {rank}")
            engine.reset_prefix_cache()
        self._engine.policy_version = ref.version
        self._engine.refusal = ""
        logger.info(
            "weights loaded version=%d bytes=%d probed=%d in_s=%.2f",
            ref.version, ref.nbytes, reports[0]["probed"], time.perf_counter() - begin,
        )  # fmt: skip
        return WeightsRef(
            version=ref.version, uri=ref.uri, checksum=reports[0]["checksum"], nbytes=reports[0]["nbytes"]
        )


def _confirm(ref: WeightsRef, report: dict[str, Any], who: str) -> None:
    if (report["version"], report["checksum"]) != (ref.version, ref.checksum):
        raise WeightsError(
            f"{who}: loaded v{report['version']} with checksum {report['checksum']},"
            f" expected v{ref.version} with {ref.checksum}"
        )
    if report["unloaded"]:
        raise WeightsError(f"{who}: weights v{ref.version} hold nothing for {', '.join(report['unloaded'][:3])}")
    if report["differing"] or not report["probed"]:
        what = ", ".join(report["differing"][:3]) or "no parameter could be compared"
        raise WeightsError(f"{who}: after loading v{ref.version} the model does not hold what was sent: {what}")


def _sampled_logprobs(output: CompletionOutput) -> tuple[float, ...]:
    flat: Any = output.logprobs
    # Of several entries at a position, the sampled token's comes first.
    return tuple(flat.logprobs[start] for start in flat.start_indices[: len(output.token_ids)])


def _dtype(spec: VllmSamplerSpec, *, on_cpu: bool) -> str:
    from safer_ray.backends.wide_products import fp32_pays

    wide = on_cpu and spec.fp32_where_faster and spec.dtype == "bfloat16" and fp32_pays()
    return "float32" if wide else spec.dtype


def _build_engine(spec: VllmSamplerSpec, model: Path | str) -> LLMEngine:
    # Read by vLLM when it is first imported: the engine runs in this process, and nothing is reported home.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch

    set_num_threads = torch.set_num_threads
    if spec.threads is not None:
        set_num_threads(spec.threads)
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    on_cpu = current_platform.is_cpu()
    if on_cpu:
        # A few small functions are compiled even with enforce_eager: half a minute of g++, and nothing gained.
        torch._dynamo.config.disable = True
    engine = LLMEngine.from_engine_args(_engine_args(spec, model, on_cpu=on_cpu))
    # On CPU vLLM replaces this function for the whole process once its threads are set.
    torch.set_num_threads = set_num_threads
    if on_cpu:
        fitted = engine.collective_rpc("fit_to_cpu")
        logger.info("cpu kernels %s", fitted[0])
    return engine


def _engine_args(spec: VllmSamplerSpec, model: Path | str, *, on_cpu: bool) -> EngineArgs:
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import EngineArgs

    from safer_ray.backends.vllm_weight_engine import BACKEND, EXTENSION

    return EngineArgs(
        model=str(model),
        dtype=_dtype(spec, on_cpu=on_cpu),  # type: ignore[arg-type]
        load_format="safetensors",  # anything else is unpickled
        seed=spec.seed,
        tensor_parallel_size=spec.tensor_parallel,
        distributed_executor_backend="mp" if spec.tensor_parallel > 1 else "uni",
        gpu_memory_utilization=spec.gpu_memory_utilization,
        kv_cache_memory_bytes=int(spec.kv_cache_gib * 2**30) if on_cpu else None,  # the share decides on GPUs
        block_size=_CPU_BLOCK_TOKENS if on_cpu else None,
        max_model_len=spec.max_model_len,
        max_num_seqs=spec.max_num_seqs,
        enable_prefix_caching=True,
        # A prompt computed in parts takes back a drawn number after each, and a CPU's generator cannot: it would fail.
        enable_chunked_prefill=False if on_cpu else None,
        enforce_eager=on_cpu,  # compiling takes minutes on CPU and gains little there
        trust_remote_code=spec.trust_remote_code,
        generation_config="vllm",  # the sampling settings are ours, not the model author's
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        worker_extension_cls=EXTENSION,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )
