"""TRL's trainers as benchmark subjects, on the very tokens our learner gets.

Tokenisation is left out of the time and so is the construction of the trainer; what is timed is the epoch, from
the trainer's own train-begin to train-end callback, and the reference log-probs.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.learners import LR
from benchmarks.workload import MODEL, Shape, make_pairs, real_traces
from safer_ray.backends.models import resolve_model

os.environ.setdefault("TQDM_DISABLE", "1")


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when an epoch's loop begins and ends."""

    begin = end = 0.0

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self.begin = time.perf_counter()

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.end = time.perf_counter()


class _Tokenised(DPOTrainer):  # type: ignore[misc]
    """Takes token ids as they are: texts would be tokenised anew, and to other tokens."""

    def _prepare_dataset(self, dataset: Any, *_args: Any, **_kwargs: Any) -> Any:
        return dataset


def _load(autocast: bool) -> Any:
    """Load the model in bf16, or in fp32 for autocast: the two usual ways of bf16 training."""
    dtype = torch.float32 if autocast else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(str(resolve_model(MODEL)), dtype=dtype)


def _arguments(folder: str, *, batch: int, accumulate: int, autocast: bool) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulate,
        "num_train_epochs": 1,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "bf16": autocast,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": 0,
    }


def _warm_up(trainer: Any, rows: int) -> None:
    """Train one batch, so that nothing is done for the first time while the clock runs."""
    whole = trainer.train_dataset
    trainer.train_dataset = whole.select(range(min(rows, len(whole))))
    trainer.train()
    trainer.train_dataset = whole


class Dpo:
    """``DPOTrainer`` on all pairs of trees of one shape; all of them in one optimiser step.

    With ``precompute`` the reference model is not kept; its log-probs are computed before the epoch, in the time.
    ``pairs`` of them are trained, drawn at equal distances: a pair costs the same whatever stands beside it.
    """

    def __init__(
        self, *, batch: int, precompute: bool, autocast: bool, threads: int, shape: dict[str, int], pairs: int
    ) -> None:
        torch.set_num_threads(threads)
        self._shape, self._folder = Shape(**shape), tempfile.TemporaryDirectory()
        every = make_pairs(self._shape)
        chosen = [every[at * len(every) // min(pairs, len(every))] for at in range(min(pairs, len(every)))]
        self._pairs = len(chosen)
        rows = {
            "prompt_ids": [list(pair.prompt_ids + pair.prefix_ids) for pair in chosen],
            "chosen_ids": [list(pair.chosen_ids) for pair in chosen],
            "rejected_ids": [list(pair.rejected_ids) for pair in chosen],
        }
        batch = min(batch, len(chosen))
        steps = _arguments(self._folder.name, batch=batch, accumulate=-(-len(chosen) // batch), autocast=autocast)
        self._clock, self._precompute = _Clock(), precompute
        self._trainer = _Tokenised(
            model=_load(autocast),
            args=DPOConfig(
                **steps, beta=0.2, max_length=None, precompute_ref_log_probs=precompute, precompute_ref_batch_size=batch
            ),
            train_dataset=Dataset.from_dict(rows),
            processing_class=AutoTokenizer.from_pretrained(str(resolve_model(MODEL))),
            callbacks=[self._clock],
        )
        self.facts = {"batch": batch, "pairs": self._pairs}
        _warm_up(self._trainer, batch)

    def run(self) -> dict[str, Any]:
        """Train one epoch."""
        begin = time.perf_counter()
        if self._precompute:
            trainer = self._trainer
            for inputs in trainer.get_train_dataloader():
                trainer.compute_ref_log_probs(trainer.model, inputs)
        reference_s = time.perf_counter() - begin
        self._trainer.train()
        seconds = reference_s + self._clock.end - self._clock.begin
        return {"seconds": seconds, "reference_s": reference_s, "rate": self._pairs / seconds}

    def close(self) -> None:
        """Remove the trainer's folder."""
        self._folder.cleanup()


class Sft:
    """``SFTTrainer`` on real traces, loss on the completion only.

    ``layout`` is ``padded``, ``padded_by_length`` (batches of similar lengths), ``padding_free`` or ``packed``
    (best-fit, ``max_length`` tokens a row). On CPUs transformers keeps packed examples apart with a mask.
    """

    def __init__(
        self, *, batch: int, layout: str, autocast: bool, threads: int, examples: int, tokens_per_step: int
    ) -> None:
        torch.set_num_threads(threads)
        traces, self._folder = real_traces(examples), tempfile.TemporaryDirectory()
        lengths = [len(trace.prompt_ids) + len(trace.completion_ids) for trace in traces]
        self._tokens = sum(lengths)
        per_batch = tokens_per_step if layout == "packed" else batch * self._tokens / len(traces)
        steps = _arguments(
            self._folder.name,
            batch=1 if layout == "packed" else batch,
            accumulate=max(1, round(tokens_per_step / per_batch)),
            autocast=autocast,
        )
        if layout == "padded_by_length":
            steps["train_sampling_strategy"] = "group_by_length"
        self._clock = _Clock()
        rows = {
            "input_ids": [list(trace.prompt_ids + trace.completion_ids) for trace in traces],
            "completion_mask": [[0] * len(t.prompt_ids) + [1] * len(t.completion_ids) for t in traces],
        }
        self._trainer = SFTTrainer(
            model=_load(autocast),
            args=SFTConfig(
                **steps,
                max_length=tokens_per_step if layout == "packed" else None,
                packing=layout == "packed",
                padding_free=layout == "padding_free",
                completion_only_loss=True,
            ),
            train_dataset=Dataset.from_dict(rows),
            processing_class=AutoTokenizer.from_pretrained(str(resolve_model(MODEL))),
            callbacks=[self._clock],
        )
        self.facts = {"tokens": self._tokens}
        _warm_up(self._trainer, batch)

    def run(self) -> dict[str, Any]:
        """Train one epoch."""
        self._trainer.train()
        seconds = self._clock.end - self._clock.begin
        return {"seconds": seconds, "rate": self._tokens / seconds}

    def close(self) -> None:
        """Remove the trainer's folder."""
        self._folder.cleanup()
