"""The pool without a cluster: actors are stand-ins that answer, hang, fail or die when told; time is the loop's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from safer_ray.cluster import replica as replica_module
from safer_ray.cluster import serving as serving_module
from safer_ray.cluster.placement import Ask
from safer_ray.cluster.pool import Pool
from safer_ray.cluster.replica import Patience, Replica, ReplicaLost
from safer_ray.core.replicas import ReplicaState
from safer_ray.errors import ClusterError, SamplerError, WeightsError
from safer_ray.records import WeightsRef

PATIENCE = Patience(start_s=5.0, call_s=5.0, probe_every_s=0.05, probe_s=0.05)


class Method:
    """A remote method: ``remote()`` asks the actor's process."""

    def __init__(self, actor: Actor, name: str) -> None:
        self._actor = actor
        self._name = name

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._actor.answer(self._name))


@dataclass(eq=False)
class Actor:
    """A process that does as told: ``outcomes[method]`` is a value, an error, or "hang"."""

    outcomes: dict[str, Any] = field(default_factory=dict)
    died: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)

    async def answer(self, name: str) -> Any:
        self.calls.append(name)
        outcome = self.outcomes.get(name, "node")
        if isinstance(outcome, Exception):
            raise outcome
        if outcome == "hang" and not self.died.is_set():
            await self.died.wait()
        if self.died.is_set():
            raise ActorDiedError
        return outcome


@dataclass
class Crew:
    """A pool and the actors it made."""

    pool: Pool
    actors: list[Actor]
    fitted: list[str]

    def replica(self, number: int) -> Replica:
        everybody = [*self.pool.past, *self.pool.replicas]
        return next(each for each in everybody if each.name == f"sampler-{number}")


def crew(*outcomes: dict[str, Any], fit: Callable[[Replica], Awaitable[None]] | None = None) -> Crew:
    """Return a pool whose first actors behave as given and whose others do everything well."""
    plans, actors, fitted = iter(outcomes), list[Actor](), list[str]()

    async def create(replica: Replica) -> None:
        replica.actor = Actor(next(plans, {}))
        actors.append(replica.actor)

    async def note(replica: Replica) -> None:
        fitted.append(replica.name)
        if fit is not None:
            await fit(replica)

    return Crew(Pool("sampler", create, note, PATIENCE), actors, fitted)


@pytest.fixture(autouse=True)
def killing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module.ray, "kill", lambda actor: actor.died.set())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def call(pool: Pool, *, alone: bool = False) -> Any:
    async with pool.use(alone=alone) as replica:
        return await replica.wait(replica.actor.sample.remote(), PATIENCE.call_s)


def test_a_replica_is_fitted_before_it_is_given_anything() -> None:
    async def story() -> None:
        ready = asyncio.Event()

        async def fit(replica: Replica) -> None:
            await ready.wait()

        crew_ = crew(fit=fit)
        starting = asyncio.create_task(crew_.pool.start(1))
        await until(lambda: crew_.fitted == ["sampler-1"])
        waiting = asyncio.create_task(call(crew_.pool))
        await asyncio.sleep(0.02)
        assert crew_.replica(1).state is ReplicaState.REFITTING
        assert "sample" not in crew_.actors[0].calls
        assert crew_.pool.status().waiting == 1
        ready.set()
        await starting
        assert await waiting == "node"

    asyncio.run(story())


def test_a_replica_that_hangs_is_suspect_then_killed_and_its_calls_end_on_another() -> None:
    async def story() -> None:
        crew_ = crew({"sample": "hang", "alive": "hang"})
        await crew_.pool.start(1)
        hanging = asyncio.create_task(call(crew_.pool))
        await until(lambda: crew_.replica(1).in_flight == 1)
        await asyncio.sleep(PATIENCE.probe_every_s)
        crew_.pool.look()
        await until(lambda: crew_.replica(1).state is ReplicaState.SUSPECT)
        with pytest.raises(ReplicaLost, match=r"sampler-1: it brought no token") as lost:
            await hanging
        assert lost.value.alone
        assert crew_.replica(1).state is ReplicaState.GONE
        assert await call(crew_.pool) == "node"
        assert crew_.fitted == ["sampler-1", "sampler-2"]
        assert crew_.pool.status().restarts == 1

    asyncio.run(story())


def test_a_suspect_that_brings_its_token_late_is_refitted_and_serves_on() -> None:
    async def story() -> None:
        crew_ = crew({"sample": ActorUnavailableError("cut off", None)})
        await crew_.pool.start(1)
        with pytest.raises(ReplicaLost, match="out of reach") as lost:
            await call(crew_.pool)
        assert not lost.value.alone, "nothing is known against the request"
        await until(lambda: crew_.replica(1).state is ReplicaState.SERVING)
        assert crew_.fitted == ["sampler-1", "sampler-1"]
        assert crew_.pool.restarts == 0

    asyncio.run(story())


def test_an_engine_that_fails_everything_is_replaced_and_a_bad_request_alone_is_not() -> None:
    async def story() -> None:
        broken, fine = (
            {"sample": SamplerError("engine gone"), "alive": SamplerError("engine gone")},
            SamplerError("long"),
        )
        crew_ = crew(broken, {"sample": fine})
        await crew_.pool.start(1)
        with pytest.raises(ReplicaLost, match="asked for one token: engine gone"):
            await call(crew_.pool)
        with pytest.raises(SamplerError, match="long"):
            await call(crew_.pool)
        assert crew_.replica(2).state is ReplicaState.SERVING

    asyncio.run(story())


def test_only_a_call_that_had_the_replica_to_itself_is_blamed_for_its_death() -> None:
    async def story() -> None:
        crew_ = crew({"sample": "hang"}, {"sample": "hang"})
        await crew_.pool.start(1)
        both = [asyncio.create_task(call(crew_.pool)) for _ in range(2)]
        await until(lambda: crew_.replica(1).in_flight == 2)
        crew_.actors[0].died.set()
        for each in await asyncio.gather(*both, return_exceptions=True):
            assert isinstance(each, ReplicaLost)
            assert not each.alone
        single = asyncio.create_task(call(crew_.pool, alone=True))
        await until(lambda: len(crew_.actors) == 2 and crew_.replica(2).in_flight == 1)
        waiting = asyncio.create_task(call(crew_.pool))
        await asyncio.sleep(0.02)
        assert crew_.replica(2).in_flight == 1, "nobody joins a call that asked to be alone"
        crew_.actors[1].died.set()
        with pytest.raises(ReplicaLost) as lost:
            await single
        assert lost.value.alone
        assert await waiting == "node"

    asyncio.run(story())


def test_a_call_is_not_blamed_for_a_node_that_was_lost_nor_for_a_replica_out_of_reach() -> None:
    fell = ActorDiedError()
    fell.error_msg = "The actor died because its node has died. Node Id: c008"
    outcomes = {"node": fell, "process": ActorDiedError(), "reach": ActorUnavailableError("", b"0" * 16)}
    expected = {"node": (True, True), "process": (True, False), "reach": (False, True)}

    async def story(outcome: Exception) -> tuple[bool, bool]:
        crew_ = crew({"sample": outcome})
        await crew_.pool.start(1)
        with pytest.raises(ReplicaLost) as lost:
            await call(crew_.pool)
        return lost.value.alone, lost.value.blameless

    assert {name: asyncio.run(story(outcome)) for name, outcome in outcomes.items()} == expected


def test_a_call_that_must_be_alone_waits_for_the_others_to_end_and_lets_no_new_one_in() -> None:
    async def story() -> None:
        crew_ = crew({"sample": "hang"})
        await crew_.pool.start(1)
        first = asyncio.create_task(call(crew_.pool))
        await until(lambda: crew_.replica(1).in_flight == 1)
        alone = asyncio.create_task(call(crew_.pool, alone=True))
        later = asyncio.create_task(call(crew_.pool))
        await asyncio.sleep(0.02)
        assert (crew_.replica(1).in_flight, crew_.replica(1).reserved) == (1, True)
        crew_.actors[0].outcomes["sample"] = "done"
        crew_.pool.lose(crew_.replica(1), "told to")
        assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], ReplicaLost)
        assert [await alone, await later] == ["node", "node"]
        assert not crew_.replica(2).reserved

    asyncio.run(story())


def test_scaling_starts_what_is_missing_and_drains_what_is_too_many_call_by_call() -> None:
    async def story() -> None:
        crew_ = crew({"sample": "hang"}, {"sample": "hang"})
        await crew_.pool.start(1)
        crew_.pool.scale(2)
        await until(lambda: len(crew_.pool.serving()) == 2)
        calls = [asyncio.create_task(call(crew_.pool)) for _ in range(2)]
        await until(lambda: crew_.pool.in_flight == 2)
        crew_.pool.scale(1)
        draining = next(each for each in crew_.pool.replicas if each.state is ReplicaState.DRAINING)
        await asyncio.sleep(0.02)
        assert draining.state is ReplicaState.DRAINING, "its call has not ended"
        kept = crew_.pool.serving()[0]
        crew_.pool.lose(kept, "told to")
        with pytest.raises(ReplicaLost):
            await calls[0 if kept.name == "sampler-1" else 1]
        assert draining.state is ReplicaState.DRAINING
        draining.actor.died.set()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: draining.state is ReplicaState.GONE)
        await until(lambda: len(crew_.pool.serving()) == 1)
        assert crew_.pool.status().wanted == 1

    asyncio.run(story())


def test_replicas_that_die_one_after_the_other_end_the_waiting_with_the_reason() -> None:
    async def story() -> None:
        crew_ = crew(*[{"sample": ActorDiedError()}] * 9)
        await crew_.pool.start(1)
        for _ in range(5):
            with pytest.raises(ReplicaLost):
                await call(crew_.pool)
        with pytest.raises(ClusterError, match=r"none is left, and no other .*: sampler: 5 were lost in a row"):
            await call(crew_.pool)

    asyncio.run(story())


def test_a_start_that_dies_is_tried_again_and_one_that_fails_says_why() -> None:
    async def story() -> None:
        crew_ = crew({"ready": ActorDiedError()})
        await crew_.pool.start(1)
        assert [each.name for each in crew_.pool.serving()] == ["sampler-2"]
        failing = crew({"ready": SamplerError("no such model")})
        with pytest.raises(SamplerError, match="no such model"):
            await failing.pool.start(1)

    asyncio.run(story())


def test_a_busy_replica_whose_probe_waits_behind_its_calls_is_not_given_up() -> None:
    async def story() -> None:
        crew_ = crew({"alive": "hang"})
        await crew_.pool.start(1)
        checking = asyncio.create_task(crew_.pool.check(crew_.replica(1)))
        until_s = asyncio.get_running_loop().time() + 4 * PATIENCE.probe_s
        while asyncio.get_running_loop().time() < until_s:
            assert await call(crew_.pool) == "node"
            await asyncio.sleep(PATIENCE.probe_s / 10)
        await checking
        assert crew_.replica(1).state is ReplicaState.SERVING
        assert len(crew_.actors) == 1

    asyncio.run(story())


def test_a_lost_replica_is_replaced_though_another_could_not_be_started_just_now() -> None:
    async def story() -> None:
        crew_ = crew({"sample": ActorDiedError()}, {"ready": SamplerError("a bad node")})
        await crew_.pool.start(1)
        crew_.pool.scale(2)
        await until(lambda: len(crew_.pool.past) == 1)
        with pytest.raises(ReplicaLost):
            await call(crew_.pool)
        assert await call(crew_.pool) == "node"

    asyncio.run(story())


def test_weights_count_as_published_once_a_sampler_has_them_even_if_all_died_of_loading() -> None:
    async def story() -> None:
        ref = WeightsRef(version=1, checksum="c", uri="/weights", nbytes=1)
        plans = iter([{"load_weights": ActorDiedError()}] * 2)
        place = serving_module.Crew(ask=Ask(cpus=1), count=2, threads=1, calls=4)
        serving = serving_module.Serving((None, place), (None, place), PATIENCE)  # type: ignore[arg-type]

        async def create(replica: Replica) -> None:
            replica.actor = Actor(next(plans, {"load_weights": ref}))

        serving.samplers = pool = Pool("sampler", create, serving._refit, PATIENCE)
        await pool.start(2)
        await until(lambda: len(pool.serving()) == 2)
        await serving.publish(ref)
        assert pool.serving()
        assert {replica.policy_version for replica in pool.serving()} == {1}

    asyncio.run(story())


def test_a_replica_that_cannot_load_the_weights_never_serves_them() -> None:
    async def story() -> None:
        crew_ = crew()
        await crew_.pool.start(2)
        await until(lambda: len(crew_.pool.serving()) == 2)
        [first, second] = crew_.pool.serving()
        first.go(ReplicaState.REFITTING)

        async def wrong(replica: Replica) -> None:
            raise WeightsError("confirmed version 1, but version 2 was published")

        with pytest.raises(WeightsError):
            await crew_.pool.refit(first, wrong)
        assert first.state is ReplicaState.GONE
        assert second.state is ReplicaState.SERVING
        await until(lambda: len(crew_.pool.serving()) == 2)

    asyncio.run(story())
