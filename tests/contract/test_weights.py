"""Weights arrive as they were sent, or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from safer_ray.backends.weights import (
    SHARED_MEMORY,
    combine_digests,
    free_weights,
    gather_state,
    land_payload,
    read_payload,
    read_weights,
    sweep_weights,
    tensor_digest,
    weights_path,
    write_weights,
)
from safer_ray.errors import WeightsError

torch = pytest.importorskip("torch")


def state(seed: int = 0) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        ("layers.10.w", torch.randn(3, 4, generator=generator)),
        ("layers.2.w", torch.randn(5, generator=generator).bfloat16()),
        ("scale", torch.tensor(2.5)),
    ]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    ref = write_weights(state(), 3, str(tmp_path))
    read = read_weights(ref)
    assert ref.version == 3
    assert ref.nbytes == 4 * 12 + 2 * 5 + 4
    for name, tensor in state():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


def test_shared_memory_is_the_default_place_and_is_freed() -> None:
    ref = write_weights(state(), 1)
    assert ref.uri.startswith(f"shm://{SHARED_MEMORY}/")
    free_weights(ref)
    free_weights(ref)
    with pytest.raises(WeightsError, match="freed"):
        read_weights(ref)


def test_the_checksum_does_not_depend_on_order_but_on_every_name_dtype_shape_and_byte() -> None:
    def checksum(tensors: list[tuple[str, torch.Tensor]]) -> str:
        return combine_digests({name: tensor_digest(tensor) for name, tensor in tensors})

    (first, w), second, third = state()
    assert checksum([third, (first, w), second]) == checksum(state())
    nudged = w.clone()
    nudged[0, 0] += 1e-6
    for other in ((f"{first}x", w), (first, nudged), (first, w.reshape(4, 3)), (first, w.view(torch.int32))):
        assert checksum([other, second, third]) != checksum(state())


def test_a_spoilt_file_is_noticed(tmp_path: Path) -> None:
    ref = write_weights(state(), 1, str(tmp_path))
    path = weights_path(ref)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="hashes to"):
        read_weights(ref)


@pytest.mark.parametrize("size", [0, 40])
def test_a_cut_file_is_noticed(tmp_path: Path, size: int) -> None:
    ref = write_weights(state(), 1, str(tmp_path))
    os.truncate(weights_path(ref), size)
    with pytest.raises(WeightsError, match="reading"):
        read_weights(ref)


def test_another_version_is_noticed(tmp_path: Path) -> None:
    ref = write_weights(state(), 1, str(tmp_path))
    with pytest.raises(WeightsError, match="holds version 1"):
        read_weights(replace(ref, version=2))


def test_nothing_and_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no tensors"):
        write_weights([], 1, str(tmp_path))
    with pytest.raises(WeightsError, match="gone"):
        write_weights(state(), 1, str(tmp_path / "gone"))
    with pytest.raises(WeightsError, match="http"):
        read_weights(replace(write_weights(state(), 1, str(tmp_path)), uri="http://example.org/x"))


def test_weights_that_do_not_fit_are_refused_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(WeightsError, match="do not fit"):
        write_weights(state(), 1, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_a_dead_writer_left_is_swept_and_the_living_keep_theirs(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    ref = write_weights(state(), 1, str(tmp_path))
    _, pid, space, *_ = weights_path(ref).name.split("-")
    assert pid == str(os.getpid())
    (tmp_path / f"safer_ray-{gone.pid}-{space}-ab-v1.safetensors").touch()
    (tmp_path / f"safer_ray-{gone.pid}-{space}-cd-v2.partial").touch()
    kept = ("someone-elses", f"safer_ray-{gone.pid}-of_another_container-ab-v1.safetensors", f"safer_ray-{gone.pid}")
    for name in kept:
        (tmp_path / name).touch()
    assert sweep_weights(str(tmp_path)) == 2
    assert read_weights(ref)
    assert all((tmp_path / name).exists() for name in kept)


def test_a_new_writer_frees_what_a_killed_one_left_in_shared_memory(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    mine = write_weights(state(), 1, str(tmp_path))
    left = Path(SHARED_MEMORY) / weights_path(mine).name.replace(str(os.getpid()), str(gone.pid), 1)
    left.touch()
    second = write_weights(state(), 2, str(tmp_path), recycled=mine)
    assert left.exists(), "a writer that has written before does not look again"
    free_weights(second)
    third = write_weights(state(), 3, str(tmp_path))
    assert not left.exists()
    left.touch()
    land_payload(third, read_payload(third), str(tmp_path))
    assert not left.exists()


def test_bytes_from_another_host_that_do_not_fit_leave_nothing(tmp_path: Path) -> None:
    ref = write_weights(state(), 4, str(tmp_path))
    crowded = tmp_path / "crowded"
    crowded.mkdir()

    class Payload:
        def tofile(self, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(WeightsError, match="No space left"):
        land_payload(ref, Payload(), str(crowded))
    assert not list(crowded.iterdir())


def test_a_tied_parameter_is_gathered_once(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    names = [name for name, _ in gather_state(model, zero_stage=0)]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert len(names) == len(set(names)) == 2 * 9 + 2


def test_bytes_from_another_host_land_as_the_same_weights(tmp_path: Path) -> None:
    ref = write_weights(state(), 4, str(tmp_path))
    payload = read_payload(ref)
    free_weights(ref)
    landed = land_payload(ref, payload, str(tmp_path))
    assert replace(landed, uri=ref.uri) == ref
    assert read_weights(landed).keys() == {name for name, _ in state()}


def test_a_recycled_version_is_gone_and_the_new_one_is_whole(tmp_path: Path) -> None:
    longer = [*state(), ("tail", torch.ones(1000))]
    first = write_weights(longer, 1, str(tmp_path))
    second = write_weights(state(1), 2, str(tmp_path), recycled=first)
    assert len(list(tmp_path.iterdir())) == 1
    assert {name: tensor.tolist() for name, tensor in read_weights(second).items()} == {
        name: tensor.tolist() for name, tensor in state(1)
    }
    with pytest.raises(WeightsError, match="freed"):
        read_weights(first)


def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def breaking() -> Iterator[tuple[str, torch.Tensor]]:
        yield from state()
        raise RuntimeError("a rank died")

    first = write_weights(state(), 1, str(tmp_path))
    with pytest.raises(WeightsError, match="a rank died"):
        write_weights(breaking(), 2, str(tmp_path), recycled=first)
    assert list(tmp_path.iterdir()) == []


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    found = load_file(weights_path(write_weights(state(), 1, str(tmp_path))))
    assert all(torch.equal(found[name], tensor) for name, tensor in state())
