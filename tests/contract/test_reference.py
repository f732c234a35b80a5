"""Weights of the past come back bit for bit from disk, are averaged as said, and say so when there is no room."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safer_ray.backends.reference import EMA_DECAY, ReferenceWeights, Snapshot  # noqa: E402
from safer_ray.errors import LearnerError  # noqa: E402


def module(*values: float) -> torch.nn.Module:
    layer = torch.nn.Linear(len(values), 1, bias=False)
    layer.weight.data = torch.tensor([values])
    return layer


def references(layer: torch.nn.Module) -> ReferenceWeights:
    return ReferenceWeights(layer, lambda: None)


def test_tensors_of_any_type_and_size_are_read_back_as_often_as_asked() -> None:
    tensors = [
        torch.tensor([1.0, float("nan"), -0.0]),
        torch.randn(3, 5).bfloat16(),
        torch.randn(4, 6).t(),
        torch.empty(0),
        torch.tensor(2.0),
    ]
    snapshot = Snapshot(tensors)
    for _ in range(2):
        for have, want in zip(snapshot, tensors, strict=True):
            assert (have.shape, have.dtype) == (want.shape, want.dtype)
            torch.testing.assert_close(have, want, rtol=0.0, atol=0.0, equal_nan=True)


def test_a_snapshot_does_not_follow_what_it_was_taken_of() -> None:
    tensor = torch.ones(3)
    snapshot = Snapshot([tensor])
    tensor.zero_()
    assert [each.tolist() for each in snapshot] == [[1.0, 1.0, 1.0]]


def test_a_snapshot_has_no_name_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    snapshot = Snapshot([torch.ones(1000)])
    assert list(tmp_path.iterdir()) == []
    assert len(list(snapshot)) == 1


def test_a_directory_that_cannot_hold_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(LearnerError, match=r"gone cannot hold its weights; set TMPDIR"):
        Snapshot([torch.ones(3)])


def test_a_file_that_lost_its_end_is_not_taken_for_weights() -> None:
    snapshot = Snapshot([torch.ones(1000)])
    snapshot._file.truncate(17)
    with pytest.raises(LearnerError, match="has become shorter"):
        list(snapshot)


def test_the_module_computes_as_the_reference_and_is_put_back_bit_for_bit() -> None:
    layer = module(1.0, 2.0)
    kept = references(layer)
    kept.begin_stage("fixed")
    layer.weight.data = torch.tensor([[3.0, float("nan")]])
    kept.begin_stage("fixed")
    with kept.applied("fixed"):
        assert layer.weight.tolist() == [[1.0, 2.0]]
    assert layer.weight.detach().numpy().tobytes() == torch.tensor([[3.0, float("nan")]]).numpy().tobytes()


def test_the_average_moves_towards_the_weights_of_each_stage() -> None:
    layer = module(0.0)
    kept = references(layer)
    want = 0.0
    for value in (0.0, 8.0, 4.0):
        layer.weight.data.fill_(value)
        kept.begin_stage("ema")
        want = value if value == 0.0 else EMA_DECAY * want + (1.0 - EMA_DECAY) * value
        with kept.applied("ema"):
            assert layer.weight.item() == pytest.approx(want)
    assert kept.policies == ["ema"]
