"""Who is blamed when a rank is lost: the one that died or is silent, not its peers, whose collective failed with it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from safer_ray.backends.base import LearnerSpec
from safer_ray.backends.fake import FakeLearnerSpec
from safer_ray.cluster.learner_group import LearnerGroup, RankLost
from safer_ray.cluster.placement import Ask
from safer_ray.cluster.replica import Patience
from safer_ray.cluster.training import LearnerPlan, Training
from safer_ray.core.plan import Phase
from safer_ray.errors import LearnerError


def all_ranks(*outcomes: Any, deadline_s: float = 20.0) -> list[Any]:
    """Ask one rank per outcome: a value it answers, an error it ends with, or None for silence."""

    async def ask() -> list[Any]:
        refs = [asyncio.get_running_loop().create_future() for _ in outcomes]
        for ref, outcome in zip(refs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                ref.set_exception(outcome)
            elif outcome is not None:
                ref.set_result(outcome)
        return await LearnerGroup(list(outcomes), None, deadline_s)._all(refs, "step")

    return asyncio.run(ask())


def test_every_rank_answers_in_order() -> None:
    assert all_ranks("a", "b", "c") == ["a", "b", "c"]


def test_a_rank_that_died_is_named_although_its_peer_failed_first() -> None:
    collateral = LearnerError("learner step: RuntimeError: connection closed by peer")
    with pytest.raises(RankLost, match=r"^learner step: lost rank 1 of 2 \(ActorDiedError\)$"):
        all_ranks(collateral, ActorDiedError())


def test_a_rank_that_is_silent_is_named_with_those_that_waited_for_it() -> None:
    with pytest.raises(
        RankLost, match=r"^learner step: the driver and ranks 0, 2 waited 0 s for rank 1, which did not"
    ):
        all_ranks("a", None, "c", deadline_s=0.05)


def test_an_error_of_the_ranks_themselves_arrives_as_it_is() -> None:
    with pytest.raises(LearnerError, match="loss is nan"):
        all_ranks(LearnerError("loss is nan"), LearnerError("loss is nan"))


def test_a_group_is_started_again_from_the_last_checkpoint_so_many_times_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []

    def after(phase: Phase | None) -> LearnerSpec:
        begun.append(phase.checkpoint if phase else "model")
        return FakeLearnerSpec()

    async def start(*args: Any, **more: Any) -> LearnerGroup:
        return LearnerGroup([], None, 1.0)

    async def work(learner: LearnerGroup) -> None:
        raise RankLost("learner step: lost rank 0 of 1 (ActorDiedError)")

    async def nothing(learner: LearnerGroup) -> None: ...

    async def run() -> Training:
        patience = Patience(start_s=1.0, call_s=1.0, probe_every_s=1.0, probe_s=1.0)
        plan = LearnerPlan(after=after, ask=Ask(cpus=0.0), threads=1, restarts=2)
        training = Training(plan, patience, nothing)
        training.trained = Phase(name="sft", kind="sft", checkpoint="sft")
        with pytest.raises(LearnerError, match=r"lost rank 0 of 1 .*started again 2 times already"):
            await training.run(work)
        return training

    monkeypatch.setattr(LearnerGroup, "start", start)
    assert asyncio.run(run()).restarts == 2
    assert begun == ["sft", "sft", "sft"]
