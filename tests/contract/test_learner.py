"""What every learner must do, over the fake and over real DeepSpeed on the tiny model."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from learner_rank import TRAINED, ZERO, free_port, task, train_one_step
from learner_tables import write_examples, write_pairs

from safer_ray.backends.base import Learner, LearnerSpec, LossSettings, StepReport, TrainTask
from safer_ray.backends.checkpoint import read_manifest
from safer_ray.backends.deepspeed_learner import DeepSpeedLearnerSpec
from safer_ray.backends.failed_batch import read_batch
from safer_ray.backends.fake import FakeLearnerSpec
from safer_ray.backends.weights import read_weights
from safer_ray.errors import DataError, LearnerError
from safer_ray.records import TraceExample
from safer_ray.tables import to_table, write_table

Build = Callable[..., Learner]
KINDS: tuple[Literal["sft", "erpo"], ...] = ("sft", "erpo")
PREFERENCE_ONLY = LossSettings(beta=0.5, alpha=0.0, nll_weight=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A learner's spec, and the task that makes its loss overflow."""

    spec: LearnerSpec
    failing: Callable[[TrainTask], tuple[LearnerSpec, TrainTask]]


def start(spec: LearnerSpec) -> Learner:
    return spec.build(rank=0, world_size=1, master=f"127.0.0.1:{free_port()}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learner")
    write_examples(folder / "sft.arrow")
    write_pairs(folder / "erpo.arrow")
    return folder


@pytest.fixture(params=["fake", "zero0 bf16", "zero1 fp32", "zero3 bf16"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "fake":
        spec = FakeLearnerSpec(batch_size=4)
        return Backend(spec=spec, failing=lambda task: (replace(spec, nan_at_step=2), task))
    model = request.getfixturevalue("tiny_model")
    zero, dtype = request.param.removeprefix("zero").split()
    real = DeepSpeedLearnerSpec(model=str(model), zero_stage=int(zero), dtype=dtype, threads=1)  # type: ignore[arg-type]
    return Backend(spec=real, failing=lambda task: (real, replace(task, optim=replace(task.optim, lr=1e38))))


@pytest.fixture
def learner(backend: Backend) -> Iterator[Learner]:
    learner = start(backend.spec)
    yield learner
    learner.close()


def run(learner: Learner, task: TrainTask) -> list[StepReport]:
    return [learner.step() for _ in range(learner.begin(task))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_has_as_many_steps_as_begin_says(learner: Learner, data: Path, kind: Literal["sft", "erpo"]) -> None:
    stage = task(kind, data / f"{kind}.arrow", epochs=2)
    steps = learner.begin(stage)
    reports = [learner.step() for _ in range(steps)]
    assert [r.step for r in reports] == list(range(1, steps + 1))
    assert all(r.steps == steps and math.isfinite(r.loss) and math.isfinite(r.grad_norm) for r in reports)
    assert all(0 <= r.lr <= stage.optim.lr and r.tokens > 0 for r in reports)
    figures = [(r.chosen_logp, r.margin, r.accuracy) for r in reports]
    assert all(math.isfinite(x) == (kind == "erpo") for row in figures for x in row)
    with pytest.raises(LearnerError, match="no step is left"):
        learner.step()


def test_a_step_needs_a_stage_and_a_stage_needs_rows_of_its_kind(learner: Learner, data: Path, tmp_path: Path) -> None:
    with pytest.raises(LearnerError, match="begin"):
        learner.step()
    write_table(to_table([], TraceExample), tmp_path / "empty.arrow")
    with pytest.raises(LearnerError, match="nothing to train on"):
        learner.begin(task("sft", tmp_path / "empty.arrow"))
    with pytest.raises(DataError, match="pairs/1"):
        learner.begin(task("erpo", data / "sft.arrow"))


def test_a_version_is_published_with_a_checksum_that_changes_with_training(learner: Learner, data: Path) -> None:
    first = learner.publish(1)
    run(learner, task("sft", data / "sft.arrow"))
    second = learner.publish(2)
    assert first is not None
    assert second is not None
    assert (first.version, second.version) == (1, 2)
    assert first.checksum != second.checksum


def test_a_loss_that_is_not_finite_stops_training(backend: Backend, data: Path) -> None:
    spec, stage = backend.failing(task("sft", data / "sft.arrow", epochs=4))
    learner = start(spec)
    try:
        assert learner.begin(stage) >= 3
        learner.step()
        with pytest.raises(LearnerError, match=r"nan|inf"):
            learner.step()
    finally:
        learner.close()


def test_a_checkpoint_replaces_what_was_there_and_leaves_nothing_aside(learner: Learner, tmp_path: Path) -> None:
    for _ in range(2):
        learner.save(str(tmp_path / "checkpoint"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert (tmp_path / "checkpoint" / "config.json").is_file()


def test_a_spec_crosses_to_an_actor_and_closing_twice_is_harmless(backend: Backend) -> None:
    spec = pickle.loads(pickle.dumps(backend.spec))
    assert spec == backend.spec
    learner = start(spec)
    learner.close()
    learner.close()


@pytest.fixture
def zero0(tiny_model: Path) -> Iterator[Learner]:
    learner = start(DeepSpeedLearnerSpec(model=str(tiny_model), dtype="fp32", threads=1))
    yield learner
    learner.close()


def published(learner: Learner, version: int = 1) -> dict[str, torch.Tensor]:
    ref = learner.publish(version)
    assert ref is not None
    return {name: tensor.clone() for name, tensor in read_weights(ref).items()}


def test_the_first_margin_is_zero_because_the_reference_is_the_policy(zero0: Learner, data: Path) -> None:
    stage = replace(task("erpo", data / "erpo.arrow", epochs=2), loss=PREFERENCE_ONLY)
    reports = run(zero0, stage)
    assert reports[0].margin == pytest.approx(0.0, abs=1e-5)
    assert reports[0].loss == pytest.approx(math.log(2.0), abs=1e-5)
    assert reports[-1].margin > 0.0
    assert reports[-1].loss < reports[0].loss


def test_the_reference_policy_decides_what_the_next_round_is_measured_against(zero0: Learner, data: Path) -> None:
    margins = {}
    for reference in ("ema", "fixed", "previous_round"):
        stage = replace(task("erpo", data / "erpo.arrow", epochs=2), loss=PREFERENCE_ONLY, reference=reference)
        run(zero0, stage)
    for reference in ("fixed", "ema", "previous_round"):
        zero0.begin(replace(task("erpo", data / "erpo.arrow"), loss=PREFERENCE_ONLY, reference=reference, seed=7))
        margins[reference] = zero0.step().margin
    assert margins["fixed"] > margins["previous_round"]
    assert margins["ema"] > margins["previous_round"]
    assert margins["previous_round"] == pytest.approx(0.0, abs=1e-5)


GOING_ON = [
    (0, "fp32", 0, "fixed"),
    (0, "bf16", 0, "ema"),
    (2, "bf16", 0, "fixed"),
    (2, "bf16", 4, "ema"),
    (3, "bf16", 0, "ema"),
]


@pytest.mark.parametrize(("zero_stage", "dtype", "lora_rank", "reference"), GOING_ON)
def test_a_learner_that_goes_on_from_a_checkpoint_has_the_losses_of_one_that_never_stopped(
    tiny_model: Path, data: Path, tmp_path: Path, zero_stage: Any, dtype: Any, lora_rank: int, reference: Any
) -> None:
    settings: Any = {"zero_stage": zero_stage, "dtype": dtype, "lora_rank": lora_rank}
    spec = DeepSpeedLearnerSpec(model=str(tiny_model), threads=1, **settings)
    first = replace(task("erpo", data / "erpo.arrow", epochs=3), reference=reference)
    rounds = [replace(first, stage=f"erpo-{number}", seed=number) for number in (1, 2, 3)]
    unbroken = start(spec)
    for stage in rounds[:2]:
        run(unbroken, stage)
    unbroken.save(str(tmp_path / "erpo-2"))
    want = [report.loss for report in run(unbroken, rounds[2])]
    unbroken.close()
    resumed = start(replace(spec, resume_from=str(tmp_path / "erpo-2")))
    have = [report.loss for report in run(resumed, rounds[2])]
    resumed.save(str(tmp_path / "erpo-3"))
    resumed.close()
    assert len(want) >= 3  # the first loss is computed before anything is updated
    assert have == want
    manifest = read_manifest(tmp_path / "erpo-3")
    assert manifest is not None
    assert [row["stage"] for row in manifest["includes"]] == ["erpo-1", "erpo-2", "erpo-3"]
    assert {row["rows"] for row in manifest["includes"]} == {24}


@pytest.mark.parametrize(
    ("zero_stage", "dtype", "kind"), [(0, "fp32", "erpo"), (2, "bf16", "erpo"), (3, "bf16", "sft")]
)
def test_a_batch_that_training_stopped_at_is_kept_and_comes_to_the_same_again(
    tiny_model: Path, data: Path, tmp_path: Path, zero_stage: Any, dtype: Any, kind: Any
) -> None:
    spec = DeepSpeedLearnerSpec(model=str(tiny_model), threads=1, zero_stage=zero_stage, dtype=dtype)
    stage = replace(task(kind, data / f"{kind}.arrow", stop_grad_norm=1e-6), failed_dir=str(tmp_path / "failed"))
    learner = start(spec)
    learner.begin(stage)
    before = learner.publish(1)
    with pytest.raises(LearnerError, match=r"above stop_grad_norm 1e-06 at step 1 .* kept in failed/.*-step-00001"):
        learner.step()
    after = learner.publish(2)
    learner.close()
    assert before is not None
    assert after is not None
    assert before.checksum == after.checksum
    folder = tmp_path / "failed" / f"{kind}-step-00001"
    batch, _ = read_batch(folder)
    again = start(replace(spec, zero_stage=0, resume_from=str(folder / "checkpoint")))
    report = again.examine(str(folder))
    published_again = again.publish(3)
    again.close()
    assert report.loss == pytest.approx(batch.loss, rel=1e-3)
    assert report.grad_norm == pytest.approx(batch.grad_norm, rel=2e-2)
    assert sum(row.loss for row in report.rows) / batch.weight == pytest.approx(report.loss, rel=1e-5)
    assert [row.row_id for row in report.rows] == [row_id for pack in batch.packs for row_id in pack.row_ids]
    assert published_again is not None
    assert published_again.checksum == before.checksum


def test_a_state_of_other_adapters_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    spec = DeepSpeedLearnerSpec(model=str(tiny_model), lora_rank=4, threads=1)
    learner = start(spec)
    learner.save(str(tmp_path / "sft"))
    learner.close()
    with pytest.raises(LearnerError, match="of another model or other adapters"):
        start(replace(spec, lora_rank=2, resume_from=str(tmp_path / "sft")))


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_computing_the_reference_leaves_the_policy_bit_for_bit(tiny_model: Path, data: Path, zero_stage: Any) -> None:
    learner = start(DeepSpeedLearnerSpec(model=str(tiny_model), zero_stage=zero_stage, threads=1))
    try:
        run(learner, task("erpo", data / "erpo.arrow"))
        before = learner.publish(1)
        learner.begin(task("erpo", data / "erpo.arrow"))
        after = learner.publish(2)
        assert before is not None
        assert after is not None
        assert before.checksum == after.checksum
    finally:
        learner.close()


def test_a_failed_step_leaves_the_weights_as_they_were(zero0: Learner, data: Path) -> None:
    stage = task("sft", data / "sft.arrow", epochs=4, lr=1e38)
    zero0.begin(stage)
    zero0.step()
    before = zero0.publish(1)
    with pytest.raises(LearnerError, match="weights are as before"):
        zero0.step()
    after = zero0.publish(2)
    assert before is not None
    assert after is not None
    assert before.checksum == after.checksum
    with pytest.raises(LearnerError, match="build the learner again"):
        zero0.begin(stage)


def test_a_checkpoint_loads_in_transformers_with_the_chat_template(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    learner = start(DeepSpeedLearnerSpec(model=str(tiny_model), threads=1, zero_stage=2))
    try:
        run(learner, task("sft", data / "sft.arrow"))
        weights = published(learner)
        learner.save(str(tmp_path / "checkpoint"))
    finally:
        learner.close()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert loaded.dtype == torch.bfloat16
    have = dict(loaded.named_parameters())
    assert weights.keys() == have.keys()
    assert all(torch.equal(weights[name], have[name]) for name in have)
    base, saved = (AutoTokenizer.from_pretrained(place) for place in (tiny_model, tmp_path / "checkpoint"))
    assert saved.chat_template == base.chat_template
    assert saved("<think>\n<assessment>").input_ids == base("<think>\n<assessment>").input_ids


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_lora_starts_as_the_base_model_and_is_published_merged(tiny_model: Path, data: Path, zero_stage: Any) -> None:
    from transformers import AutoModelForCausalLM

    base = dict(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).named_parameters())
    spec = DeepSpeedLearnerSpec(model=str(tiny_model), dtype="fp32", threads=1, lora_rank=4, zero_stage=zero_stage)
    learner = start(spec)
    try:
        before = published(learner)
        run(learner, task("sft", data / "sft.arrow"))
        after = published(learner, 2)
    finally:
        learner.close()
    assert before.keys() == after.keys() == base.keys()
    assert all(torch.equal(before[name], base[name]) for name in base)
    changed = {name for name in base if not torch.equal(after[name], base[name])}
    assert changed == {name for name in base if "_proj" in name}


def test_gradient_checkpointing_changes_nothing(tiny_model: Path, data: Path) -> None:
    losses = []
    for recompute in (False, True):
        spec = DeepSpeedLearnerSpec(model=str(tiny_model), dtype="fp32", threads=1, gradient_checkpointing=recompute)
        learner = start(spec)
        losses.append([r.loss for r in run(learner, task("erpo", data / "erpo.arrow"))])
        learner.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_two_ranks_take_the_same_step_as_one(tiny_model: Path, data: Path) -> None:
    port = str(free_port())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("learner_rank.py")),
                str(rank),
                "2",
                port,
                str(tiny_model),
                str(data),
            ],
            env=environment,
        )
        for rank in range(2)
    ]
    spec = DeepSpeedLearnerSpec(model=str(tiny_model), dtype="fp32", threads=1)
    try:
        train_one_step(spec, (0, 1, free_port()), data)
        assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    from safetensors.torch import load_file

    for name, _ in TRAINED:
        want = load_file(data / f"zero0-1-{name}" / "model.safetensors")
        for zero in ZERO:
            have = load_file(data / f"zero{zero}-2-{name}" / "model.safetensors")
            assert max(float((want[key] - have[key]).abs().max()) for key in want) < 1e-5
