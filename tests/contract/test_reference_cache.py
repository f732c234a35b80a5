"""Reference log-probs come back as they were kept, for equal paths under an equal reference, and for nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from learner_rank import free_port
from learner_tables import random_pairs, write_pairs

from safer_ray.backends.base import OptimSettings, TrainTask
from safer_ray.core.packing import Pack, build_trees, pack

torch = pytest.importorskip("torch")
from safer_ray.backends.deepspeed_learner import DeepSpeedLearner, DeepSpeedLearnerSpec  # noqa: E402
from safer_ray.backends.reference_cache import ReferenceCache, path_keys, reference_checksum  # noqa: E402


def paths(row: Pack) -> list[tuple[int, ...]]:
    """Per log-prob all token ids from the root to the target, found the slow way."""
    seen = [
        [k for k in range(q + 1) if q < row.subtree_stop_T[k]]  # ancestors and itself, the rule of attention
        for q in range(row.tokens)
    ]
    return [
        (*(int(row.input_ids_T[k]) for k in seen[source]), int(target))
        for source, target in zip(row.source_L.tolist(), row.target_L.tolist(), strict=True)
    ]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(0, 10**6), st.integers(20, 400))
def test_keys_are_equal_exactly_where_paths_are(prompts: int, seed: int, budget: int) -> None:
    rows = pack(build_trees(random_pairs(prompts, seed=seed), token_budget=budget), budget)
    keys = [tuple(key) for row in rows for key in path_keys(row).tolist()]
    every = [path for row in rows for path in paths(row)]
    assert len(set(keys)) == len(set(every)) == len(set(zip(keys, every, strict=True)))


def values_of(rows: list[Pack]) -> dict[int, torch.Tensor]:
    return {index: torch.tensor([-float(len(path)) for path in paths(row)]) for index, row in enumerate(rows)}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(30, 300))
def test_what_was_kept_is_found_in_other_packs(tmp_path: Path, seed: int, budget: int) -> None:
    pairs = random_pairs(3, seed=seed)
    rows, others = pack(build_trees(pairs), 400), pack(build_trees(pairs, token_budget=budget), budget)
    ReferenceCache(tmp_path, str(seed)).keep(rows, values_of(rows))
    found = ReferenceCache(tmp_path, str(seed)).find(others)
    assert found.keys() == set(range(len(others)))
    for index, expected in values_of(others).items():
        assert torch.equal(found[index], expected)


def test_a_pack_with_one_unknown_token_is_not_found_and_another_reference_knows_nothing(tmp_path: Path) -> None:
    rows = build_trees(random_pairs(2))
    cache = ReferenceCache(tmp_path, "a")
    assert cache.find(rows) == {}
    cache.keep(rows, {0: values_of(rows)[0]})
    assert set(cache.find(rows)) == {0}
    assert set(cache.find(build_trees(random_pairs(2, seed=1)))) == set()
    assert ReferenceCache(tmp_path, "b").find(rows) == {}


@pytest.mark.parametrize("size", [0, 60])
def test_a_spoilt_segment_is_passed_over(tmp_path: Path, size: int) -> None:
    rows = build_trees(random_pairs(1))
    ReferenceCache(tmp_path, "a").keep(rows, values_of(rows))
    [segment] = (tmp_path / "a").iterdir()
    segment.write_bytes(segment.read_bytes()[:size])
    assert len(ReferenceCache(tmp_path, "a")) == 0


@pytest.fixture
def learner(tiny_model: Path, tmp_path: Path) -> Iterator[DeepSpeedLearner]:
    spec = DeepSpeedLearnerSpec(model=str(tiny_model), dtype="fp32", reference_cache=str(tmp_path / "kept"))
    built = spec.build(rank=0, world_size=1, master=f"127.0.0.1:{free_port()}")
    yield built
    built.close()


def test_a_learner_asks_its_reference_once(learner: DeepSpeedLearner, tmp_path: Path) -> None:
    table = write_pairs(tmp_path / "pairs.arrow")
    task = TrainTask(stage="a", kind="erpo", data_path=str(table), optim=OptimSettings(lr=1e-2, pack_tokens=128))
    learner.begin(task)
    first = dict(learner._stage.reference_L)  # type: ignore[union-attr]
    checksum = reference_checksum(learner._policy.model)
    learner.step()
    assert reference_checksum(learner._policy.model) != checksum
    asked: list[int] = []
    learner._engine.register_forward_pre_hook(lambda *_: asked.append(1))
    learner.begin(task)  # the fixed reference is put back, so all is known
    assert asked == []
    again = learner._stage.reference_L  # type: ignore[union-attr]
    assert all(torch.equal(again[index], logps) for index, logps in first.items())
