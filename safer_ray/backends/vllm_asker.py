"""A judge model on a vLLM engine of its own, inside the judge actor; built when it is first asked."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safer_ray.backends.endpoint import Question, Reply
from safer_ray.backends.models import resolve_model
from safer_ray.errors import JudgeError, boundary

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmAskerSpec:
    """Builds a :class:`VllmAsker`. ``kv_cache_gib`` is for CPU, ``gpu_memory_share`` for GPUs."""

    model: str
    max_tokens: int = 200
    max_model_len: int = 8192
    kv_cache_gib: float = 1.0
    gpu_memory_share: float = 0.85
    tensor_parallel: int = 1
    threads: int = 1
    dtype: str = "bfloat16"
    trust_remote_code: bool = False

    def build(self) -> VllmAsker:
        """Return the asker; its engine starts with the first question."""
        return VllmAsker(self)


class VllmAsker:
    """Implements ``Asker``; all questions of a call run as one batch, greedily."""

    def __init__(self, spec: VllmAskerSpec) -> None:
        self._spec = spec
        self._lock = threading.Lock()
        self._engine: LLM | None = None

    @property
    def name(self) -> str:
        """The model."""
        return self._spec.model

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Return one reply per question, in order; a question that does not fit gets none.

        Raises:
            JudgeError: if the engine does not start or fails.
        """
        with self._lock, boundary(JudgeError, f"judge model {self.name}"):
            engine = self._started()
            tokenizer = engine.get_tokenizer()
            prompts = [self._prompt_ids(tokenizer, question) for question in questions]
            room = self._spec.max_model_len - self._spec.max_tokens
            fits = [at for at, ids in enumerate(prompts) if len(ids) <= room]
            outputs = engine.generate(
                [{"prompt_token_ids": prompts[at]} for at in fits],
                [self._params(questions[at]) for at in fits],
                use_tqdm=False,
            )
            found = dict(zip(fits, outputs, strict=True))
            return [
                self._reply(question, found[at]) if at in found else self._too_long(question, len(prompts[at]))
                for at, question in enumerate(questions)
            ]

    def close(self) -> None:
        """Drop the engine. Safe to call twice."""
        with self._lock:
            self._engine = None

    def _prompt_ids(self, tokenizer: Any, question: Question) -> list[int]:
        if question.raw:
            # The frame brings its own begin-of-text token where it has one.
            raw = _encodable(question.raw)
            return list(tokenizer.encode(raw, add_special_tokens=not raw.startswith("<s>")))
        turns = [{"role": turn.role, "content": turn.content} for turn in question.messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(tokenizer.encode(_encodable(text), add_special_tokens=False))

    def _params(self, question: Question) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        form = StructuredOutputsParams(json=question.schema) if question.schema else None
        return SamplingParams(
            temperature=0.0,
            max_tokens=self._spec.max_tokens,
            seed=question.seed,
            logprobs=question.logprobs or None,
            structured_outputs=form,
        )

    def _reply(self, question: Question, output: RequestOutput) -> Reply:
        answer = output.outputs[0]
        positions = tuple(
            tuple((each.decoded_token or "", each.logprob) for each in position.values())
            for position in answer.logprobs or ()
        )
        return Reply(
            question_id=question.question_id,
            text=answer.text if answer.text.strip() else None,
            error="" if answer.text.strip() else "an answer without text",
            tries=1,
            tokens_in=len(output.prompt_token_ids or ()),
            tokens_out=len(answer.token_ids),
            truncated=answer.finish_reason == "length",
            positions=positions,
        )

    def _too_long(self, question: Question, tokens: int) -> Reply:
        error = f"{tokens} tokens do not fit into the judge's {self._spec.max_model_len}"
        return Reply(question_id=question.question_id, text=None, error=error, tries=1)

    def _started(self) -> LLM:
        if self._engine is not None:
            return self._engine
        begin = time.perf_counter()
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        import torch

        set_num_threads = torch.set_num_threads
        set_num_threads(self._spec.threads)
        from vllm import LLM
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        if on_cpu:
            torch._dynamo.config.disable = True  # half a minute of g++, and nothing gained
        spec = self._spec
        self._engine = LLM(
            model=str(resolve_model(spec.model)),
            dtype=spec.dtype,  # type: ignore[arg-type]
            seed=0,
            tensor_parallel_size=spec.tensor_parallel,
            gpu_memory_utilization=spec.gpu_memory_share,
            kv_cache_memory_bytes=int(spec.kv_cache_gib * 2**30) if on_cpu else None,
            max_model_len=spec.max_model_len,
            enable_prefix_caching=True,
            enforce_eager=on_cpu,
            trust_remote_code=spec.trust_remote_code,
            generation_config="vllm",
            disable_log_stats=True,
        )
        torch.set_num_threads = set_num_threads
        logger.info("judge engine ready model=%s in_s=%.1f", spec.model, time.perf_counter() - begin)
        return self._engine


def _encodable(text: str) -> str:
    """Replace half surrogate pairs: tokenizers refuse them."""
    return text.encode("utf-8", "replace").decode()
