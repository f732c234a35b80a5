"""``frozen_layers``: the lowest layers stay as they are, the rest is trained, under every way of sharding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learner_rank import free_port, task
from learner_tables import write_examples

from safer_ray.backends.base import Learner
from safer_ray.backends.deepspeed_learner import DeepSpeedLearnerSpec
from safer_ray.backends.weights import read_weights
from safer_ray.errors import ModelError

LAYERS = 2  # of the tiny model


def start(spec: DeepSpeedLearnerSpec) -> Learner:
    return spec.build(rank=0, world_size=1, master=f"127.0.0.1:{free_port()}")


def weights(learner: Learner, version: int) -> dict[str, torch.Tensor]:
    ref = learner.publish(version)
    assert ref is not None
    return {name: tensor.clone() for name, tensor in read_weights(ref).items()}


def train(spec: DeepSpeedLearnerSpec, data: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the weights before and after one stage of SFT."""
    learner = start(spec)
    try:
        before = weights(learner, 1)
        for _ in range(learner.begin(task("sft", data))):
            learner.step()
        return before, weights(learner, 2)
    finally:
        learner.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frozen") / "sft.arrow"
    write_examples(path)
    return path


@pytest.mark.parametrize(("zero_stage", "dtype"), [(0, "bf16"), (0, "fp32"), (2, "bf16"), (3, "bf16")])
def test_the_lowest_layers_stay_bit_for_bit_and_all_above_is_trained(
    tiny_model: Path, data: Path, zero_stage: Any, dtype: Any
) -> None:
    spec = DeepSpeedLearnerSpec(
        model=str(tiny_model), zero_stage=zero_stage, dtype=dtype, threads=1, frozen_layers=LAYERS - 1
    )
    before, after = train(spec, data)
    same = {name for name in before if torch.equal(before[name], after[name])}
    below = {name for name in before if ".layers.0." in name}
    assert below <= same
    assert not [name for name in same - below if "norm" not in name]  # norms move by less than bf16 can tell from 1


def test_freezing_computes_the_same_loss_and_fewer_gradients(tiny_model: Path, data: Path) -> None:
    reports = []
    for frozen in (0, LAYERS - 1):
        learner = start(DeepSpeedLearnerSpec(model=str(tiny_model), dtype="fp32", threads=1, frozen_layers=frozen))
        learner.begin(task("sft", data))
        reports.append(learner.step())
        learner.close()
    assert reports[0].loss == reports[1].loss
    assert 0 < reports[1].grad_norm < reports[0].grad_norm


def test_a_model_without_a_layer_left_to_train_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"frozen_layers 2 leaves nothing of the model's 2 layers to train"):
        start(DeepSpeedLearnerSpec(model=str(tiny_model), threads=1, frozen_layers=LAYERS))
