"""Where everything of a run lies: the one place that knows file names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run. Shards are per item and go once their phase is sealed."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config, JSON."""
        return self.root / "config.json"

    @property
    def log(self) -> Path:
        """Log lines of the driver."""
        return self.root / "run.log"

    @property
    def prompts(self) -> Path:
        """Every prompt of the run, ``prompts/1``."""
        return self.root / "prompts.arrow"

    @property
    def status(self) -> Path:
        """What the running driver knows that no event tells: workers, queues. JSON, a few seconds old."""
        return self.root / "status.json"

    @property
    def summary(self) -> Path:
        """The run in figures, JSON."""
        return self.root / "summary.json"

    @property
    def traces(self) -> Path:
        """Synthetic traces to train on, ``traces/1``."""
        return self.root / "traces" / "sft.arrow"

    @property
    def written_traces(self) -> Path:
        """Every trace that was written, where filters leave some of them out of ``traces``."""
        return self.root / "traces" / "written.arrow"

    @property
    def teacher_cache(self) -> Path:
        """Answers of an endpoint teacher, so that a resumed run does not pay twice."""
        return self.root / "traces" / "teacher_cache.jsonl"

    @property
    def reference_cache(self) -> Path:
        """Log-probs of reference policies, so that no token is put to the same reference twice."""
        return self.root / "reference_logprobs"

    @property
    def curves(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def scale_order(self) -> Path:
        """How many replicas somebody wants, JSON; gone once the driver has read it."""
        return self.root / "scale.order.json"

    @property
    def scale_answer(self) -> Path:
        """What the driver said to the last order, JSON."""
        return self.root / "scale.answer.json"

    @property
    def scorer_cache(self) -> Path:
        """What a model said of drafts of traces."""
        return self.root / "traces" / "scorer_cache.jsonl"

    def round(self, number: int) -> Path:
        """Folder of one ERPO round: pairs, rollouts, verdicts."""
        return self.root / "rounds" / f"round-{number:03d}"

    def evaluation(self, checkpoint: str) -> Path:
        """Outcomes of one evaluation, ``outcomes/1``."""
        return self.root / "evaluations" / f"{checkpoint}.arrow"

    def checkpoint(self, name: str) -> Path:
        """A Hugging Face checkpoint."""
        return self.root / "checkpoints" / name

    @property
    def failed(self) -> Path:
        """Batches that training stopped at, one folder each, kept for replay."""
        return self.root / "failed"

    def shards(self, phase: str) -> Path:
        """Folder of a gather phase's per-item shards."""
        return self.root / "shards" / phase

    def seal_mark(self, phase: str) -> Path:
        """Folder that is there as soon as all final files of a gather phase are on disk; its shards go by way of it."""
        return self.root / "shards" / f".{phase}.sealed"

    def listed_shards(self, phase: str) -> dict[int, str]:
        """Return the digest of each item's shard that lies there, "" where the name has none."""
        stems = sorted(path.stem.partition("-") for path in self.shards(phase).glob("*.arrow"))
        return {int(item): digest for item, _, digest in stems}

    def shard(self, phase: str, item: int) -> Path:
        """Where one item's shard is meant to lie; its content digest is added to the name."""
        return self.shards(phase) / f"{item:08d}.arrow"
