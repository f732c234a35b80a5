"""Our learner as a benchmark subject: a whole stage per run, planning and reference log-probs included."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.workload import MODEL, Shape, real_traces, write_pairs
from safer_ray.backends.base import LossSettings, OptimSettings, TrainTask
from safer_ray.backends.deepspeed_learner import DeepSpeedLearner, DeepSpeedLearnerSpec
from safer_ray.core.packing import Pack
from safer_ray.records import TraceExample
from safer_ray.tables import to_table, write_table

LR = 1e-6


class OurLearner:
    """One rank of the DeepSpeed learner over one table; ``run`` is one epoch of it."""

    def __init__(
        self, kind: str, data_path: Path, *, pack_tokens: int, tokens_per_step: int, threads: int, zero_stage: int = 0
    ) -> None:
        spec = DeepSpeedLearnerSpec(model=MODEL, threads=threads, zero_stage=zero_stage)  # type: ignore[arg-type]
        self._learner: DeepSpeedLearner = spec.build(rank=0, world_size=1, master=f"127.0.0.1:{_free_port()}")
        self._task = TrainTask(
            stage="bench",
            kind=kind,  # type: ignore[arg-type]
            data_path=str(data_path),
            optim=OptimSettings(lr=LR, tokens_per_step=tokens_per_step, pack_tokens=pack_tokens, schedule="constant"),
            loss=LossSettings(nll_weight=0.0),
            reference="fixed",
        )
        self.stage()

    def stage(self) -> dict[str, Any]:
        """Run the stage once."""
        begin = time.perf_counter()
        steps = self._learner.begin(self._task)
        planned = time.perf_counter()
        reports = [self._learner.step() for _ in range(steps)]
        _synchronise()
        end = time.perf_counter()
        return {
            "seconds": end - begin,
            "begin_s": planned - begin,
            "step_s": end - planned,
            "steps": steps,
            "packed_tokens": sum(report.tokens for report in reports),
        }

    @property
    def packs(self) -> tuple[Pack, ...]:
        """The rows of the last stage."""
        stage = self._learner._stage
        assert stage is not None
        return stage.packs

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._learner._policy.model.config

    def close(self) -> None:
        """Leave the process group."""
        self._learner.close()


class Pairs(OurLearner):
    """ERPO on trees of one shape, without the NLL term: the loss is then the one DPO trainers compute."""

    def __init__(self, *, pack_tokens: int, tokens_per_step: int, threads: int, **shape: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path, self._shape = Path(self._folder.name) / "pairs.arrow", Shape(**shape)
        unshared = write_pairs(self._shape, path)
        super().__init__("erpo", path, pack_tokens=pack_tokens, tokens_per_step=tokens_per_step, threads=threads)
        self.facts = {
            "pairs": self._shape.pairs,
            "unshared_tokens": unshared,
            "packed_tokens": sum(row.tokens for row in self.packs),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }

    def run(self) -> dict[str, Any]:
        """Return the time, the pairs per second, and the share of the matmul peak the optimiser steps reached."""
        peak_before = matmul_peak()
        figures = self.stage()
        peak_after = matmul_peak()
        peaks = {name: statistics.fmean([peak_before[name], peak_after[name]]) for name in peak_before}
        flops = sum(step_flops(row, self.config) for row in self.packs) / figures["step_s"]
        return {
            **figures,
            "rate": self._shape.pairs / figures["seconds"],
            "tflops": flops / 1e12,
            **{f"peak_{name}_tflops": peak / 1e12 for name, peak in peaks.items()},
            "peak_tflops": max(peaks.values()) / 1e12,
            "share_of_peak": flops / max(peaks.values()),
        }


class Sft(OurLearner):
    """SFT on real traces."""

    def __init__(self, *, examples: int, pack_tokens: int, tokens_per_step: int, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path, traces = Path(self._folder.name) / "traces.arrow", real_traces(examples)
        write_table(to_table(traces, TraceExample), path)
        self._tokens = sum(len(trace.prompt_ids) + len(trace.completion_ids) for trace in traces)
        super().__init__("sft", path, pack_tokens=pack_tokens, tokens_per_step=tokens_per_step, threads=threads)
        self.facts = {"tokens": self._tokens}

    def run(self) -> dict[str, Any]:
        """Return the time and the tokens per second."""
        figures = self.stage()
        return {**figures, "rate": self._tokens / figures["seconds"]}


def step_flops(row: Pack, config: Any) -> float:
    """Return the model FLOPs of forward and backward over one row: products that the loss depends on, nothing twice.

    Linear layers count once per token, the output layer once per log-prob, attention once per visible key. The
    backward pass counts twice the forward pass (gradients of inputs and of weights).
    """
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    attended, kept = config.num_attention_heads * head, config.num_key_value_heads * head
    layer = width * (2 * attended + 2 * kept) + 3 * width * inner
    visible = float((row.position_ids_T + 1).sum())
    forward = 2.0 * row.tokens * layer * config.num_hidden_layers
    forward += 4.0 * visible * attended * config.num_hidden_layers
    forward += 2.0 * len(row.source_L) * config.vocab_size * width
    return 3.0 * forward


def matmul_peak(size: int = 2048, for_s: float = 0.4) -> dict[str, float]:
    """Return the FLOP/s of the best product of square matrices seen within ``for_s``, for bf16 and for fp32.

    On a GPU fp32 is not tried: its learner multiplies bf16 only.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        size *= 4
    dtypes = {"bf16": torch.bfloat16} if device == "cuda" else {"bf16": torch.bfloat16, "fp32": torch.float32}
    return {
        name: _best_product(torch.randn(size, size, device=device).to(dtype), for_s) for name, dtype in dtypes.items()
    }


def _best_product(square: torch.Tensor, for_s: float) -> float:
    times: list[float] = []
    torch.mm(square, square)
    begin = time.perf_counter()
    while time.perf_counter() - begin < for_s:
        _synchronise()
        start = time.perf_counter()
        torch.mm(square, square)
        _synchronise()
        times.append(time.perf_counter() - start)
    return float(2 * len(square) ** 3 / min(times))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
